"""AdamW (Loshchilov & Hutter 2019): two float32 states for each trained parameter, 8 bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from lorikeet.train.optimizers import _fused
from lorikeet.train.optimizers._contract import Optimizer, Shared, State


class AdamWTorch(Optimizer):
    """AdamW with float32 states, by torch's fused kernel."""

    kind: Literal["adamw_torch"] = "adamw_torch"
    also: ClassVar[tuple[str, ...]] = ("adamw_torch_fused",)

    def begin(self, parameter: Tensor) -> State:
        return _fused.begin(parameter)

    def update(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[State], shared: Shared
    ) -> None:
        _fused.update(parameters, gradients, states, shared)
