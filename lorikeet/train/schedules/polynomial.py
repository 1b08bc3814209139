"""A power of what is left of the run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lorikeet.base.option_types import Rate
from lorikeet.train.schedules._contract import Moment, Schedule


class Polynomial(Schedule):
    """Falls as a power of the share of steps that are left; power 1 is a straight line."""

    kind: Literal["polynomial"] = "polynomial"
    power: float = Field(1.0, gt=0, le=1000, description="Above 1 it falls early, below 1 late.")
    lr_end: Rate = Field(1e-7, description="The rate behind the last step.")

    def falling(self, at: Moment) -> float:
        left = 1.0 - at.progress
        return ((at.peak - self.lr_end) * left**self.power + self.lr_end) / at.peak

    def check(self, peak: float) -> None:
        if self.lr_end >= peak:
            raise ValueError(f"lr_scheduler_type.lr_end ({self.lr_end:g}) has to be below learning_rate ({peak:g})")
