"""The gradient census: soon after the start, everything that should train must have had a gradient.

A frozen graph, a target that matched nothing, an adapter outside the graph: all train without an error elsewhere, and
learn nothing. Here they stop the run. A LoRA's A gets its first gradient after B's first update, hence two steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from lorikeet.base.errors import TrainingError

PATIENCE = 2  # steps after the first with a learning rate above zero


class Census:
    """Call `count` after each step until it returns True."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self.parameters = parameters
        self.waiting = set(parameters)
        self.effective_steps = 0

    def count(self, rate: float) -> bool:
        """Look at the step's gradients; True when all have been seen.

        Raises TrainingError for a gradient that is not finite, or tensors still without one after the patience."""
        for name in sorted(self.waiting):
            grad = self.parameters[name].grad
            if grad is None:
                continue
            if not torch.isfinite(grad).all():
                raise TrainingError(
                    f"the gradient of {name} is not finite", try_="a lower learning_rate, or model.dtype=float32"
                )
            if grad.any():
                self.waiting.discard(name)
        if not self.waiting:
            return True
        if rate > 0:
            self.effective_steps += 1
        if self.effective_steps > PATIENCE:
            names = sorted(self.waiting)
            raise TrainingError(
                f"{len(names)} of {len(self.parameters)} trainable tensors receive no gradient",
                given=", ".join(names[:3]),
                try_="check adapter.target_modules; if the names are right, this is a bug of ours",
            )
        return False
