"""A cosine between three rates: where the warm-up begins, the peak, and where the run ends."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lorikeet.base.option_types import Rate
from lorikeet.train.schedules._contract import Moment
from lorikeet.train.schedules._least import CosineToLeast


class CosineWithMinLr(CosineToLeast):
    """Falls along half a cosine to a rate above zero. With init_lr the warm-up begins above zero too."""

    kind: Literal["cosine_with_min_lr"] = "cosine_with_min_lr"
    of_warmup: ClassVar[tuple[str, ...]] = ("init_lr",)
    rates: ClassVar[tuple[str, ...]] = ("min_lr", "init_lr")
    init_lr: Rate = Field(0.0, description="The rate of the first step of the warm-up.")

    def rising(self, at: Moment) -> float:
        start = self.init_lr / at.peak
        return start + (1.0 - start) * at.warmed

    def falling(self, at: Moment) -> float:
        return self.at(at.progress, at.peak)
