"""A cosine that counts its steps from 1, as transformers' kind of this name does: no step has the rate 0."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from lorikeet.base.option_types import Rate, Waves
from lorikeet.train.schedules._contract import Moment, Schedule
from lorikeet.train.schedules.cosine_with_min_lr import lowest


class CosineWarmupWithMinLr(Schedule):
    """Like cosine_with_min_lr, with steps counted from 1: the warm-up's first step learns, and the last has min_lr."""

    kind: Literal["cosine_warmup_with_min_lr"] = "cosine_warmup_with_min_lr"
    of_warmup: ClassVar[tuple[str, ...]] = ("warmup_lr_rate",)
    min_lr: Rate | None = Field(None, description="The rate of the last step; instead of min_lr_rate.")
    min_lr_rate: float | None = Field(
        None, ge=0, le=1, description="The same as a share of learning_rate; 0.1 where neither is given."
    )
    num_cycles: Waves = Field(0.5, description="Waves of the cosine: 0.5 falls once.")
    warmup_lr_rate: float | None = Field(
        None,
        ge=0,
        le=1,
        description="The first step's share of learning_rate; by default 1 / warm-up steps.",
    )

    @model_validator(mode="after")
    def _one_minimum(self) -> Self:
        if self.min_lr is not None and self.min_lr_rate is not None:
            raise ValueError("min_lr is given, so min_lr_rate would have no effect")
        return self

    def rising(self, at: Moment) -> float:
        if self.warmup_lr_rate is None:
            return (at.step + 1) / max(1, at.warmup)
        return self.warmup_lr_rate + (1.0 - self.warmup_lr_rate) * at.step / max(1, at.warmup - 1)

    def falling(self, at: Moment) -> float:
        least = lowest(self.min_lr, self.min_lr_rate, at.peak)
        progress = (at.step - at.warmup + 1) / max(1, at.steps - at.warmup)
        wave = 0.5 * (1.0 + math.cos(math.pi * self.num_cycles * 2.0 * progress))
        return max(0.0, wave * (1.0 - least) + least)

    def check(self, peak: float) -> None:
        if self.min_lr is not None and self.min_lr > peak:
            raise ValueError(f"lr_scheduler_type.min_lr ({self.min_lr:g}) is above learning_rate ({peak:g}), the peak")
