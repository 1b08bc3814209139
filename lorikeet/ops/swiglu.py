"""SwiGLU (Shazeer 2020): silu(gate) * up, keeping only its input for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_swiglu(gate_up: Tensor) -> Tensor:
    """The definition. gate_up [T, 2F] (gate first) -> [T, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class SwigluFunction(torch.autograd.Function):
    """d silu(g) = sigmoid(g) * (1 + g * (1 - sigmoid(g))), from the saved input."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (dy,) = grads
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad = torch.empty_like(gate_up)
        dgate, dup = grad.chunk(2, dim=-1)
        torch.mul(dy, F.silu(gate), out=dup)
        dgate.copy_(torch.ops.aten.silu_backward(dy * up, gate))
        return grad


def swiglu(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2F] -> [T, F]."""
    return SwigluFunction.apply(gate_up)
