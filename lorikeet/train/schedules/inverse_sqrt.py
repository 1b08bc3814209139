"""One over the square root of the step (Vaswani et al. 2017): falls for as long as the run goes on."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from lorikeet.train.schedules._contract import Moment, Schedule


class InverseSqrt(Schedule):
    """Falls as one over the square root of the step, without an end that has to be known."""

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    timescale: int | None = Field(
        None,
        ge=1,
        description="Steps after which the rate is 1/sqrt(2) of the peak; by default those of the warm-up, else 10000.",
    )

    def falling(self, at: Moment) -> float:
        scale = self.timescale or at.warmup or 10_000
        return 1.0 / math.sqrt((at.step - at.warmup + scale) / scale)
