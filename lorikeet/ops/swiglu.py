"""Gated linear units (Shazeer 2020): act(gate) * up, keeping only its input for the backward pass.

SwiGLU with silu (Llama and most others), GeGLU with the tanh form of gelu (Gemma) or the exact one.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["silu", "gelu_tanh", "gelu"]
_GELU = {"gelu_tanh": "tanh", "gelu": "none"}  # torch's word for the form


def reference_swiglu(gate_up: Tensor, activation: Activation = "silu") -> Tensor:
    """The definition. gate_up [T, 2F] (gate first) -> [T, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return _act(gate, activation) * up


def _act(gate: Tensor, activation: Activation) -> Tensor:
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate=_GELU[activation])


class SwigluFunction(torch.autograd.Function):
    """d silu(g) = sigmoid(g) * (1 + g * (1 - sigmoid(g))), from the saved input; gelu's comes from torch."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.activation = activation
        gate, up = gate_up.chunk(2, dim=-1)
        return _act(gate, activation) * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (dy,) = grads
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad = torch.empty_like(gate_up)
        dgate, dup = grad.chunk(2, dim=-1)
        torch.mul(dy, _act(gate, ctx.activation), out=dup)
        if ctx.activation == "silu":
            dgate.copy_(torch.ops.aten.silu_backward(dy * up, gate))
        else:
            dgate.copy_(torch.ops.aten.gelu_backward(dy * up, gate, approximate=_GELU[ctx.activation]))
        return grad, None


def swiglu(gate_up: Tensor, activation: Activation = "silu") -> Tensor:
    """gate_up [T, 2F] -> [T, F]."""
    return SwigluFunction.apply(gate_up, activation)
