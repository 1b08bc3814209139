"""Numbers that are not finite, and losses that jump: what a step with one means for the run.

Either the run stops, with the rows and the layer, or the step is left out: weights and optimizer stay as they were.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from lorikeet.base.option_types import Amount
from lorikeet.base.options import Options
from lorikeet.train.spikes import ceiling
from lorikeet.train.step import StepResult


class FiniteOptions(Options):
    """The part of the recipe's `train` section that says what happens to numbers nobody wants."""

    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="What a loss or gradient that is not finite means: the run stops, or the step is left out; either "
        "way the rows and the layer are named, and nothing has moved.",
    )
    max_skipped_steps: int = Field(5, ge=1, description="So many steps left out in a row end the run.")
    loss_spike_factor: Amount = Field(
        10.0,
        description="A loss so many deviations above the median of the last 64 is a spike (by the median absolute "
        "deviation); 0 for no alarm.",
    )
    on_loss_spike: Literal["warn", "skip", "stop"] = Field(
        "warn", description="What a spike means: a line, the step left out, or the end of the run before it is made."
    )

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        if self.on_nonfinite == "skip" and getattr(self, "optimizer_in_backward", False):
            raise ValueError(
                "on_nonfinite: skip has to look at all gradients before a tensor moves, and optimizer_in_backward "
                "moves them one by one"
            )
        if self.on_loss_spike != "warn" and not self.loss_spike_factor:
            raise ValueError(f"on_loss_spike is {self.on_loss_spike}, and loss_spike_factor 0 finds none")
        return self

    def spike(self, losses: list[float], loss: float) -> float | None:
        """The loss from which on a step is a spike, if `loss` is one after `losses`. An infinite one is none: that
        is no number, and `on_nonfinite` says what it means."""
        limit = ceiling(losses, self.loss_spike_factor)
        return limit if limit is not None and limit < loss < math.inf else None

    def accepts(self, losses: list[float], loss: float) -> bool:
        """Whether a step with this loss may move weights."""
        return math.isfinite(loss) and (self.on_loss_spike == "warn" or self.spike(losses, loss) is None)


def trouble(result: StepResult, step: int) -> str:
    """What is wrong with step `step` (from 0), whose weights did not move."""
    if not math.isfinite(result.loss):
        return f"the loss of step {step + 1} is {result.loss}"
    if not result.refused:
        return f"the gradient norm of step {step + 1} is {result.grad_norm}"
    return f"the loss of step {step + 1} is {result.loss:.3f}, a spike"


def row_of_metrics(step: int, why: str, found: dict[str, Any]) -> dict[str, Any]:
    """What metrics.jsonl says of a step that was left out."""
    return {"kind": "skipped", "step": step + 1, "why": why, **found}
