"""Half a cosine to zero at the last step (Loshchilov & Hutter 2017, without restarts)."""

from __future__ import annotations

import math
from typing import Literal

from lorikeet.train.schedules._contract import Moment, Schedule


class Cosine(Schedule):
    """Falls along half a cosine to zero behind the last step."""

    kind: Literal["cosine"] = "cosine"

    def falling(self, at: Moment) -> float:
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * at.progress)))
