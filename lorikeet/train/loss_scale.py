"""The loss scale of float16: gradients too small for it are computed larger, and divided again before they are used.

float16 ends at 65,504 and loses what is below 6e-8. The loss, hence every gradient, is multiplied by a power of two.
Where a gradient overflows, the step is computed again at half the scale, from the same rows with the same draws, so no
row is lost; after many steps without that the scale doubles (Micikevicius et al. 2018, but for the second attempt).
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST, LEAST, MOST = 2.0**16, 2.0**-14, 2.0**24
PATIENCE = 2000  # steps without an overflow after which the scale doubles


@dataclass
class LossScale:
    """Its two numbers are part of a checkpoint."""

    scale: float = FIRST
    good_steps: int = 0

    def worked(self) -> None:
        """A step's gradients were finite."""
        self.good_steps += 1
        if self.good_steps >= PATIENCE:
            self.scale, self.good_steps = min(MOST, self.scale * 2), 0

    def overflowed(self) -> bool:
        """They were not. Whether a smaller scale is left to try."""
        self.good_steps = 0
        if self.scale <= LEAST:
            return False
        self.scale /= 2
        return True
