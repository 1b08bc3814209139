"""Lion (Chen et al. 2023): the sign of a mix of momentum and gradient; one float32 state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lorikeet.train.optimizers._contract import Optimizer, Shared, State


class Lion(Optimizer):
    """Every number moves by the learning rate, up or down, so the rate wants to be 3 to 10 times lower than AdamW's;
    adam_beta1 weighs momentum against the gradient, adam_beta2 is the momentum's decay (0.99 in the paper)."""

    kind: Literal["lion"] = "lion"
    reads: ClassVar[frozenset[str]] = frozenset({"weight_decay", "adam_beta1", "adam_beta2"})
    also: ClassVar[tuple[str, ...]] = ("lion_32bit",)

    def begin(self, parameter: Tensor) -> State:
        return {"exp_avg": torch.zeros_like(parameter)}

    def update(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[State], shared: Shared
    ) -> None:
        for parameter, gradient, state in zip(parameters, gradients, states):
            direction = torch.lerp(gradient, state["exp_avg"], shared.adam_beta1).sign_()
            parameter.mul_(1 - shared.rate * shared.weight_decay).add_(direction, alpha=-shared.rate)
            state["exp_avg"].lerp_(gradient, 1 - shared.adam_beta2)
