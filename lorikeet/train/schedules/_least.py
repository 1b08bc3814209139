"""What the schedules share that fall along a cosine to a rate above zero."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field, model_validator
from typing_extensions import Self

from lorikeet.base.option_types import Rate, Waves
from lorikeet.train.schedules._contract import Schedule


class CosineToLeast(Schedule):
    """The lowest rate, and the wave that ends there."""

    rates: ClassVar[tuple[str, ...]] = ("min_lr",)  # options that are rates, and none may be above the peak
    min_lr: Rate | None = Field(None, description="The rate at the end of the run; instead of min_lr_rate.")
    min_lr_rate: float | None = Field(
        None, ge=0, le=1, description="The same as a share of learning_rate; 0.1 where neither is given."
    )
    num_cycles: Waves = Field(0.5, description="Waves of the cosine: 0.5 falls once.")

    @model_validator(mode="after")
    def _one_minimum(self) -> Self:
        if self.min_lr is not None and self.min_lr_rate is not None:
            raise ValueError("min_lr is given, so min_lr_rate would have no effect")
        return self

    def at(self, progress: float, peak: float) -> float:
        """The share of the peak, `progress` (0 to 1) of the way from it to the end."""
        share = 0.1 if self.min_lr_rate is None else self.min_lr_rate
        least = share if self.min_lr is None else self.min_lr / peak
        wave = 0.5 * (1.0 + math.cos(math.pi * self.num_cycles * 2.0 * progress))
        return max(0.0, wave * (1.0 - least) + least)

    def check(self, peak: float) -> None:
        for name in self.rates:
            rate = getattr(self, name)
            if rate is not None and rate > peak:
                raise ValueError(f"lr_scheduler_type.{name} ({rate:g}) is above learning_rate ({peak:g}), the peak")
