"""The same rate from the first step to the last."""

from __future__ import annotations

from typing import ClassVar, Literal

from lorikeet.train.schedules._contract import Moment, Schedule


class Constant(Schedule):
    """One rate, without a warm-up."""

    kind: Literal["constant"] = "constant"
    warms_up: ClassVar[bool] = False

    def falling(self, at: Moment) -> float:
        return 1.0
