"""8-bit AdamW whose states the CUDA driver moves to the host's memory when the device's is full."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor

from lorikeet.train.optimizers import _bitsandbytes
from lorikeet.train.optimizers._adamw_8bit import BlockwiseAdamW
from lorikeet.train.optimizers._contract import Shared, State


class PagedAdamW8bit(BlockwiseAdamW):
    """adamw_8bit with its states in paged memory on CUDA, by bitsandbytes; elsewhere adamw_8bit, with a note."""

    kind: Literal["paged_adamw_8bit"] = "paged_adamw_8bit"

    def begin(self, parameter: Tensor) -> State:
        state = super().begin(parameter)
        if parameter.is_cuda:
            return {name: _bitsandbytes.paged(name, value, parameter) for name, value in state.items()}
        return state

    def update(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[State], shared: Shared
    ) -> None:
        super().update(parameters, gradients, states, shared)
        if any(parameter.is_cuda for parameter in parameters):
            torch.cuda.synchronize()  # the host reads these states without asking the device

    def place(self, name: str, value: Tensor, parameter: Tensor) -> Tensor:
        placed = super().place(name, value, parameter)
        return _bitsandbytes.paged(name, placed, parameter) if parameter.is_cuda else placed

    def computes(self, device: torch.device) -> str:
        return _bitsandbytes.computes(device, paging=True)

    def remark(self, device: torch.device, parameters: Collection[Tensor] = ()) -> str | None:
        return super().remark(device, parameters) or _bitsandbytes.remark(self.kind, "adamw_8bit", device)
