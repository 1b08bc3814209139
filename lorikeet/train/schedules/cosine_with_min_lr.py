"""A cosine between three rates: where the warm-up begins, the peak, and where the run ends."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from lorikeet.base.option_types import Rate, Waves
from lorikeet.train.schedules._contract import Moment, Schedule


class CosineWithMinLr(Schedule):
    """Falls along half a cosine to a rate above zero. With init_lr the warm-up begins above zero too."""

    kind: Literal["cosine_with_min_lr"] = "cosine_with_min_lr"
    of_warmup: ClassVar[tuple[str, ...]] = ("init_lr",)
    min_lr: Rate | None = Field(None, description="The rate behind the last step; instead of min_lr_rate.")
    min_lr_rate: float | None = Field(
        None, ge=0, le=1, description="The same as a share of learning_rate; 0.1 where neither is given."
    )
    num_cycles: Waves = Field(0.5, description="Waves of the cosine: 0.5 falls once.")
    init_lr: Rate = Field(0.0, description="The rate of the first step of the warm-up.")

    @model_validator(mode="after")
    def _one_minimum(self) -> Self:
        if self.min_lr is not None and self.min_lr_rate is not None:
            raise ValueError("min_lr is given, so min_lr_rate would have no effect")
        return self

    def rising(self, at: Moment) -> float:
        start = self.init_lr / at.peak
        return start + (1.0 - start) * at.warmed

    def falling(self, at: Moment) -> float:
        least = lowest(self.min_lr, self.min_lr_rate, at.peak)
        wave = 0.5 * (1.0 + math.cos(math.pi * self.num_cycles * 2.0 * at.progress))
        return max(0.0, wave * (1.0 - least) + least)

    def check(self, peak: float) -> None:
        for name, rate in (("min_lr", self.min_lr), ("init_lr", self.init_lr)):
            if rate is not None and rate > peak:
                raise ValueError(f"lr_scheduler_type.{name} ({rate:g}) is above learning_rate ({peak:g}), the peak")


def lowest(min_lr: float | None, min_lr_rate: float | None, peak: float) -> float:
    """The lowest rate as a share of the peak."""
    if min_lr is not None:
        return min_lr / peak
    return 0.1 if min_lr_rate is None else min_lr_rate
