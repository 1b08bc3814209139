"""The optimizer inside the backward pass (Lv et al. 2023, LOMO): a parameter moves as soon as its gradient is complete,
and the gradient is let go, so that no two large ones are there at once.

It gives the very numbers of a step behind the pass, with two limits. Clipping needs the norm of all gradients before
the first parameter moves, so there is none (the norm is still reported). And a step of several rows has to add up its
gradients until the last row's pass, so only a step of one row keeps none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class InBackward:
    """Calls `move(parameter, rate)` for each of `parameters` inside the passes that `at(rate)` surrounds."""

    def __init__(self, parameters: Sequence[nn.Parameter], move: Callable[[nn.Parameter, float], None]):
        self._parameters, self._move = parameters, move
        self._rate: float | None = None
        self.moved: dict[nn.Parameter, Tensor] = {}  # and the norm of its gradient
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._complete)

    @contextmanager
    def at(self, rate: float) -> Iterator[None]:
        """The pass of the step's last row."""
        self._rate = rate
        try:
            yield
            for parameter in self._parameters:  # tables, whose gradients no hook hears of; what the last row left alone
                if parameter not in self.moved:
                    self._complete(parameter)
        finally:
            self._rate = None

    @contextmanager
    def still(self) -> Iterator[None]:
        """While the block runs nothing moves, though gradients are let go as if it had."""
        move, self._move = self._move, lambda _parameter, _rate: None
        try:
            yield
        finally:
            self._move = move

    def _complete(self, parameter: nn.Parameter) -> None:
        gradient = parameter.grad
        if self._rate is None or gradient is None:
            return
        self.moved[parameter] = torch.linalg.vector_norm(gradient.detach())
        self._move(parameter, self._rate)
        parameter.grad = _trace(gradient)


def _trace(gradient: Tensor) -> Tensor:
    """What tells of a gradient whether it was finite and not zero, of experts [E, ...] each: its norms, seen in its
    shape, without its room."""
    inside = tuple(range(1, gradient.dim())) if gradient.dim() == 3 else None
    norm = torch.linalg.vector_norm(gradient, dim=inside, keepdim=True)
    return norm.expand(gradient.shape)
