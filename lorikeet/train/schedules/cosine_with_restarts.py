"""Cosines that begin again at the peak (Loshchilov & Hutter 2017)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from lorikeet.train.schedules._contract import Moment, Schedule


class CosineWithRestarts(Schedule):
    """Falls along half a cosine to zero several times, each time from the peak."""

    kind: Literal["cosine_with_restarts"] = "cosine_with_restarts"
    num_cycles: int = Field(1, ge=1, description="How often it falls.")

    def falling(self, at: Moment) -> float:
        if at.progress >= 1.0:
            return 0.0
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((self.num_cycles * at.progress) % 1.0))))
