"""A straight line to zero at the last step."""

from __future__ import annotations

from typing import Literal

from lorikeet.train.schedules._contract import Moment, Schedule


class Linear(Schedule):
    """Falls in a straight line to zero behind the last step."""

    kind: Literal["linear"] = "linear"

    def falling(self, at: Moment) -> float:
        return max(0.0, (at.steps - at.step) / max(1, at.steps - at.warmup))
