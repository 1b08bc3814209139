"""How gradients move parameters: an optimizer is a rule and the tensors it keeps for each parameter.

A kind is stateless. What it keeps lies with the Stepper by name, so that checkpoints save it and planning counts it,
and no kind needs a line for either. The clipped gradients and the rate of the step come from outside.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lorikeet.base.options import Options

State = dict[str, Tensor]


class Shared(NamedTuple):
    """The step's learning rate, and what the `train` section tells optimizers under the names of its options."""

    rate: float
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float


class Optimizer(Options):
    """Base of the optimizer kinds; fields are `train.optim`'s options."""

    reads: ClassVar[frozenset[str]] = frozenset(Shared._fields[1:])  # of Shared: the others have no effect
    also: ClassVar[tuple[str, ...]] = ()  # further names that people know it by

    def begin(self, parameter: Tensor) -> State:
        """What is kept for `parameter` [any shape] before its first step. Looks at no number of it."""
        raise NotImplementedError

    def update(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[State], shared: Shared
    ) -> None:
        """Move the parameters and their states in place. All have a gradient of their own shape and dtype."""
        raise NotImplementedError

    def place(self, name: str, value: Tensor, parameter: Tensor) -> Tensor:
        """A saved tensor of `parameter`'s state where `update` wants it. A copy: two optimizers share nothing."""
        return value.to(parameter.device, copy=True)

    def computes(self, device: torch.device) -> str:
        """What computes there, for a run's identity: a run does not go on with other arithmetic."""
        return "torch"

    def remark(self, device: torch.device, parameters: Collection[Tensor] = ()) -> str | None:
        """A line for the person who asked for this kind on this device, where it does less than its name says: at all,
        or of these `parameters`."""
        return None
