"""AdamW with two bytes of state for a trained number: what adamw_8bit and paged_adamw_8bit have in common."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from pydantic import Field
from torch import Tensor

from lorikeet import kernels
from lorikeet.kernels import optimizer
from lorikeet.train.optimizers import _bitsandbytes, _blockwise, _fused
from lorikeet.train.optimizers._contract import Optimizer, Shared, State


class BlockwiseAdamW(Optimizer):
    """Tensors of at least min_8bit_size numbers have one-byte states; the others float32 ones."""

    kind: str
    min_8bit_size: int = Field(4096, ge=1, description="Smaller tensors keep float32 states.")

    def begin(self, parameter: Tensor) -> State:
        return _fused.begin(parameter) if self._is_small(parameter) else _blockwise.begin(parameter)

    def update(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[State], shared: Shared
    ) -> None:
        small = [i for i, parameter in enumerate(parameters) if self._is_small(parameter)]
        _fused.update([parameters[i] for i in small], [gradients[i] for i in small], [states[i] for i in small], shared)
        for parameter, gradient, state in zip(parameters, gradients, states):
            if not self._is_small(parameter):
                state["step"] += 1
                self._move(parameter, gradient.contiguous(), state, shared)

    def place(self, name: str, value: Tensor, parameter: Tensor) -> Tensor:
        if name == "step" and not self._is_small(parameter):
            return value.clone()
        return super().place(name, value, parameter)

    def computes(self, device: torch.device) -> str:
        return _bitsandbytes.computes(device)

    def remark(self, device: torch.device, parameters: Collection[Tensor] = ()) -> str | None:
        """See `Optimizer.remark`."""
        if not parameters or not all(map(self._is_small, parameters)):
            return None
        least = f"no trained tensor has {self.min_8bit_size:,} numbers (min_8bit_size)"
        return f"train.optim: {least}, so {self.kind} keeps float32 states, as adamw_torch does"

    def _is_small(self, parameter: Tensor) -> bool:
        return parameter.numel() < self.min_8bit_size

    def _move(self, parameter: Tensor, gradient: Tensor, state: State, shared: Shared) -> None:
        if not parameter.is_contiguous():
            _blockwise.reference_adamw(parameter, gradient, state, shared)
        elif parameter.device.type == "cuda" and _bitsandbytes.installed():
            _bitsandbytes.adamw_8bit(parameter, gradient, state, shared)
        elif parameter.dtype == torch.float32 and kernels.serves(parameter, gradient):
            _compiled(parameter, gradient, state, shared)
        else:
            _blockwise.reference_adamw(parameter, gradient, state, shared)


def _compiled(parameter: Tensor, gradient: Tensor, state: State, shared: Shared) -> None:
    optimizer.adamw_8bit(
        parameter,
        gradient,
        (state["exp_avg"], state["exp_avg_absmax"]),
        (state["exp_avg_sq"], state["exp_avg_sq_absmax"]),
        state["step"],
        rate=shared.rate,
        betas=(shared.adam_beta1, shared.adam_beta2),
        epsilon=shared.adam_epsilon,
        decay=shared.weight_decay,
    )
