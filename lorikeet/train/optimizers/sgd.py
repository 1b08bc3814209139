"""Plain stochastic gradient descent: nothing is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from lorikeet.train.optimizers._contract import Optimizer, Shared, State


class Sgd(Optimizer):
    """Stochastic gradient descent without momentum; weight decay is added to the gradient, as torch does."""

    kind: Literal["sgd"] = "sgd"
    reads: ClassVar[frozenset[str]] = frozenset({"weight_decay"})

    def begin(self, parameter: Tensor) -> State:
        return {}

    def update(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[State], shared: Shared
    ) -> None:
        decay = shared.weight_decay
        for parameter, gradient in zip(parameters, gradients):
            parameter.add_(gradient.add(parameter, alpha=decay) if decay else gradient, alpha=-shared.rate)
