"""Gated linear units (Shazeer 2020): act(gate) * up, keeping only its input for the backward pass.

SwiGLU with silu (Llama and most others), GeGLU with the tanh form of gelu (Gemma) or the exact one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lorikeet import kernels
from lorikeet.kernels import swiglu as compiled

Activation = Literal["silu", "gelu_tanh", "gelu"]
_GELU = {"gelu_tanh": "tanh", "gelu": "none"}  # torch's word for the form


def reference_swiglu(gate_up: Tensor, activation: Activation = "silu") -> Tensor:
    """The definition. gate_up [T, 2F] (gate first) -> [T, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return _act(gate, activation) * up


def _act(gate: Tensor, activation: Activation) -> Tensor:
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate=_GELU[activation])


@dataclass(frozen=True)
class Gated:
    """A gated unit as what comes before a linear (`lora_linear`'s prologue): gate_up [T, 2F] -> [T, F]."""

    activation: Activation = "silu"

    def _compiled(self, gate_up: Tensor) -> bool:
        return self.activation in compiled.ACTIVATIONS and kernels.serves(gate_up) and gate_up.is_contiguous()

    def forward(self, gate_up: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output; nothing is kept besides the input."""
        if self._compiled(gate_up):
            return compiled.forward(gate_up, self.activation), None
        gate, up = gate_up.chunk(2, dim=-1)
        return _act(gate, self.activation).mul_(up), None

    def backward(
        self, gate_up: Tensor, _kept: Tensor | None, dy: Tensor, *, again: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The gradient [T, 2F], and with `again` the output once more.

        d silu(g) = sigmoid(g) * (1 + g * (1 - sigmoid(g))); gelu's comes from torch."""
        if self._compiled(gate_up) and dy.dtype == gate_up.dtype:
            return compiled.backward(gate_up, dy, self.activation, again=again)
        gate, up = gate_up.chunk(2, dim=-1)
        grad = torch.empty_like(gate_up)
        dgate, dup = grad.chunk(2, dim=-1)
        value = _act(gate, self.activation)
        torch.mul(dy, value, out=dup)
        dproduct = dy * up
        if self.activation == "silu":
            torch.ops.aten.silu_backward.grad_input(dproduct, gate, grad_input=dgate)
        else:
            form = _GELU[self.activation]
            torch.ops.aten.gelu_backward.grad_input(dproduct, gate, approximate=form, grad_input=dgate)
        return grad, value.mul_(up) if again else None


class SwigluFunction(torch.autograd.Function):
    """A gated unit that stands alone."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.unit = Gated(activation)
        return ctx.unit.forward(gate_up)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        return ctx.unit.backward(gate_up, None, grads[0])[0], None


def swiglu(gate_up: Tensor, activation: Activation = "silu") -> Tensor:
    """gate_up [T, 2F] -> [T, F]."""
    return SwigluFunction.apply(gate_up, activation)
