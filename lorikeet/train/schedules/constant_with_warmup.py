"""A warm-up, then one rate."""

from __future__ import annotations

from typing import Literal

from lorikeet.train.schedules._contract import Moment, Schedule


class ConstantWithWarmup(Schedule):
    """One rate behind the warm-up."""

    kind: Literal["constant_with_warmup"] = "constant_with_warmup"

    def falling(self, at: Moment) -> float:
        return 1.0
