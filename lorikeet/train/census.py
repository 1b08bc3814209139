"""The gradient census: soon after the start, everything that should train must have had a gradient.

A frozen graph, a target that matched nothing, an adapter outside the graph: all train without an error elsewhere, and
learn nothing. Here they stop the run. A LoRA's A gets its first gradient after B's first update, hence two steps.
Experts share one tensor [E, ...]; those that no token has reached yet are counted, and said, but stop nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorikeet.base.errors import TrainingError
from lorikeet.base.log import note

PATIENCE = 2  # steps after the first with a learning rate above zero


class Census:
    """Call `after_step` after each step; `counted`: an interrupted run has looked at its gradients already."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, counted: bool = False):
        self.parameters, self.counted = parameters, counted
        # the rows of tokens that no text has yet shown wait without harm
        self.waiting = {name for name in parameters if not name.endswith("trainable_tokens_delta")}
        self.reached: dict[str, Tensor] = {}  # by the name of a layer's experts: which had a gradient [E]
        self.effective_steps = 0

    def after_step(self, rate: float) -> None:
        """Count, until all have been seen; then say which experts no token has reached."""
        if not self.counted and self.count(rate):
            self.counted = True
            if line := self.unreached():
                note(line)

    def count(self, rate: float) -> bool:
        """Look at the step's gradients; True when all have been seen.

        Raises TrainingError for a gradient that is not finite, or tensors still without one after the patience."""
        self._see_experts()
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

    def _see_experts(self) -> None:
        for name, parameter in self.parameters.items():
            if parameter.dim() == 3 and parameter.grad is not None:
                experts = name.partition(".experts.")[0]
                seen = parameter.grad.flatten(1).any(1)
                self.reached[experts] = seen | self.reached.get(experts, torch.zeros_like(seen))

    def unreached(self) -> str | None:
        """A line on the experts that no token has reached, and the layers with most of them; None: all were reached."""
        missing = {name: int((~seen).sum()) for name, seen in self.reached.items() if not seen.all()}
        if not missing:
            return None
        every = sum(len(seen) for seen in self.reached.values())
        worst = sorted(missing, key=lambda name: -missing[name])[:3]
        listed = ", ".join(f"{missing[name]} in {name.removeprefix('base_model.model.')}" for name in worst)
        return f"{sum(missing.values())} of {every} experts have not had a token so far: {listed}"
