"""A cosine that counts its steps from 1, as transformers' kind of this name does: no step has the rate 0."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lorikeet.train.schedules._contract import Moment
from lorikeet.train.schedules._least import CosineToLeast


class CosineWarmupWithMinLr(CosineToLeast):
    """Like cosine_with_min_lr, with steps counted from 1: the warm-up's first step learns, and the last has min_lr."""

    kind: Literal["cosine_warmup_with_min_lr"] = "cosine_warmup_with_min_lr"
    of_warmup: ClassVar[tuple[str, ...]] = ("warmup_lr_rate",)
    warmup_lr_rate: float | None = Field(
        None,
        ge=0,
        le=1,
        description="The first step's share of learning_rate; by default 1 / warm-up steps.",
    )

    def rising(self, at: Moment) -> float:
        if self.warmup_lr_rate is None:
            return (at.step + 1) / max(1, at.warmup)
        return self.warmup_lr_rate + (1.0 - self.warmup_lr_rate) * at.step / max(1, at.warmup - 1)

    def falling(self, at: Moment) -> float:
        return self.at((at.step - at.warmup + 1) / max(1, at.steps - at.warmup), at.peak)
