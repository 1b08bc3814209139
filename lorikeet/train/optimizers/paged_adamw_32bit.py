"""AdamW whose float32 states the CUDA driver moves to the host's memory when the device's is full."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lorikeet.train.optimizers import _bitsandbytes, _fused
from lorikeet.train.optimizers._contract import Optimizer, Shared, State


class PagedAdamW32bit(Optimizer):
    """AdamW with its states in paged memory on CUDA, by bitsandbytes; elsewhere adamw_torch, with a note."""

    kind: Literal["paged_adamw_32bit"] = "paged_adamw_32bit"
    also: ClassVar[tuple[str, ...]] = ("paged_adamw",)

    def begin(self, parameter: Tensor) -> State:
        state = _fused.begin(parameter)
        if not parameter.is_cuda:
            return state
        return {name: self.place(name, value, parameter) for name, value in state.items()}

    def update(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[State], shared: Shared
    ) -> None:
        if not any(parameter.is_cuda for parameter in parameters):
            _fused.update(parameters, gradients, states, shared)
            return
        for parameter, gradient, state in zip(parameters, gradients, states):
            state["step"] += 1
            _bitsandbytes.adamw_32bit(parameter, gradient.contiguous(), state, shared)
        torch.cuda.synchronize()  # the host reads these states without asking the device

    def place(self, name: str, value: Tensor, parameter: Tensor) -> Tensor:
        if not parameter.is_cuda:
            return super().place(name, value, parameter)
        if name == "step":
            return value.cpu().clone()  # read on the host for every tensor of every step
        return _bitsandbytes.paged(name, super().place(name, value, parameter), parameter)

    def computes(self, device: torch.device) -> str:
        return _bitsandbytes.computes(device, paging=True)

    def remark(self, device: torch.device, parameters: Collection[Tensor] = ()) -> str | None:
        return _bitsandbytes.remark(self.kind, "adamw_torch", device)
