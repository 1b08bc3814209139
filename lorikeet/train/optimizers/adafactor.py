"""Adafactor (Shazeer & Stern 2018): of a matrix's squared gradients only the means of rows and of columns are kept.

transformers' variant of it, as `optim: adafactor` runs there: the learning rate is the schedule's, no momentum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lorikeet.base.option_types import Factor
from lorikeet.train.optimizers._contract import Optimizer, Shared, State

_SQUARE, _SCALE = 1e-30, 1e-3  # added to squared gradients; the least that scale_parameter multiplies by


class Adafactor(Optimizer):
    """Squared gradients factored into rows and columns, no momentum: almost no state for matrices. Each tensor's
    update is scaled down to a root mean square of clip_threshold, then multiplied by the learning rate."""

    kind: Literal["adafactor"] = "adafactor"
    reads: ClassVar[frozenset[str]] = frozenset({"weight_decay"})
    clip_threshold: Factor = Field(1.0, description="Most root mean square of a tensor's update, before the rate.")
    decay_rate: float = Field(
        -0.8, ge=-10, lt=0, description="The second moment forgets less with time: step t has weight t to this power."
    )
    scale_parameter: bool = Field(
        False, description="Multiply the learning rate by the root mean square of each tensor, at least 0.001."
    )

    def begin(self, parameter: Tensor) -> State:
        shape, device = parameter.shape, parameter.device
        state: State = {"step": torch.zeros((), device=device)}
        if parameter.dim() < 2:
            return state | {"exp_avg_sq": torch.zeros(shape, device=device)}
        return state | {
            "exp_avg_sq_row": torch.zeros(shape[:-1], device=device),
            "exp_avg_sq_col": torch.zeros(shape[:-2] + shape[-1:], device=device),
        }

    def update(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[State], shared: Shared
    ) -> None:
        for parameter, gradient, state in zip(parameters, gradients, states):
            state["step"] += 1
            self._move(parameter, gradient.float(), state, shared)

    def _move(self, parameter: Tensor, gradient: Tensor, state: State, shared: Shared) -> None:
        fresh = (state["step"].double() ** self.decay_rate).float()
        squared = gradient.square().add_(_SQUARE)
        if "exp_avg_sq" in state:
            update = state["exp_avg_sq"].lerp_(squared, fresh).rsqrt().mul_(gradient)
        else:
            row = state["exp_avg_sq_row"].lerp_(squared.mean(dim=-1), fresh)
            column = state["exp_avg_sq_col"].lerp_(squared.mean(dim=-2), fresh)
            along = (row / row.mean(dim=-1, keepdim=True)).rsqrt_()
            update = squared.copy_(gradient).mul_(along.unsqueeze(-1)).mul_(column.rsqrt().unsqueeze(-2))
        rate: Tensor | float = shared.rate
        if self.scale_parameter:
            rate = _rms(parameter.float()).clamp_(min=_SCALE).mul_(shared.rate)
        update.mul_(rate / (_rms(update) / self.clip_threshold).clamp_(min=1.0))
        if shared.weight_decay:
            parameter.mul_(1 - shared.weight_decay * rate)
        parameter.sub_(update)


def _rms(tensor: Tensor) -> Tensor:
    return tensor.norm() / tensor.numel() ** 0.5
