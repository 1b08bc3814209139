"""The costliest row first: what a run takes at most is known before it has worked for hours.

Its forward and backward pass runs with the optimizer's state and the gradients there, then all of that is dropped:
weights, optimizer and what is drawn later are as if it had not been.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field

from lorikeet.base.amounts import mib
from lorikeet.base.nouns import Batch
from lorikeet.base.options import Options
from lorikeet.models.causal_lm import CausalLM
from lorikeet.train.metrics import peak_device_bytes, peak_rss_bytes
from lorikeet.train.noise import NoiseOptions
from lorikeet.train.optim import Stepper
from lorikeet.train.step import batch_loss

WORTH = 20  # steps from which on a run is long enough to begin with its costliest row


class RehearsalOptions(Options):
    """The part of the recipe's `train` section on what runs before the first step."""

    rehearsal: Literal["auto"] | bool = Field(
        "auto",
        description="Run the costliest planned row before the first step and say the peak memory; auto: in runs of 20 "
        "steps and more that begin, and whose first step has no row as large.",
    )


@dataclass(frozen=True)
class Costliest:
    """The row that takes most memory among the steps looked at."""

    row: Batch
    step: int  # from 0
    rows: int  # of its step
    looked_at: int  # steps

    def says(self, peak: int) -> str:
        """The line for people."""
        return (
            f"memory: {mib(peak)} at the peak, with the costliest row of {self.looked_at} planned steps "
            f"(step {self.step + 1}, {len(self.row.tokens):,} tokens)"
        )


def due(options: RehearsalOptions, step: int, steps: int) -> bool:
    """Whether to look for the costliest row at all, before step `step`: a run that goes on has had it."""
    return step == 0 and steps >= WORTH if options.rehearsal == "auto" else options.rehearsal


def peak_bytes(device: torch.device) -> int:
    """The peak so far: of the device, or of the process."""
    return peak_device_bytes(device) or peak_rss_bytes()


def first_is_costliest(found: Costliest, first: Sequence[Batch]) -> bool:
    """Whether the first step shows the same."""
    return max(len(row.tokens) for row in first) >= len(found.row.tokens)


def rehearse(model: CausalLM, stepper: Stepper, row: Batch, rows: int, noise: NoiseOptions) -> None:
    """Forward and backward of `row`, one of `rows` in its step, with all that a step has beside it; then none of it."""
    state, kind = stepper.optimizer.state, stepper.options.optim
    new = [parameter for parameter in stepper.parameters.values() if parameter not in state]
    stepper.clear()
    try:
        for parameter in new:
            state[parameter] = kind.begin(parameter)
            for value in state[parameter].values():
                value.add_(0)  # so that its pages are there
        if rows > 1:  # it may be the one that adds to the gradients of the others
            for parameter in stepper.parameters.values():
                parameter.grad = torch.zeros_like(parameter)
        loss = batch_loss(model, row.to(model.device), noise).loss / row.total_weight
        with stepper.still():
            stepper.backward(loss, last_at=0.0)
    finally:
        stepper.clear()
        for parameter in new:
            state.pop(parameter, None)
