"""The face of swiglu.cpp: a gated unit and its gradient in one pass each."""

from __future__ import annotations

import torch
from torch import Tensor

from lorikeet.kernels import DTYPES, Kernel

ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}  # the number is the C++ side's; the exact gelu is left to torch

_forward, _backward = Kernel("swiglu", "swiglu_forward"), Kernel("swiglu", "swiglu_backward")


def forward(gate_up: Tensor, activation: str) -> Tensor:
    """gate_up [T, 2F], contiguous -> [T, F]."""
    rows, double = gate_up.shape
    out = torch.empty(rows, double // 2, dtype=gate_up.dtype, device=gate_up.device)
    _forward(DTYPES[gate_up.dtype], ACTIVATIONS[activation], rows, double // 2, gate_up, out)
    return out


def backward(gate_up: Tensor, dy: Tensor, activation: str, *, again: bool) -> tuple[Tensor, Tensor | None]:
    """dy [T, F] -> the gradient [T, 2F], and with `again` the output of `forward` once more."""
    rows, double = gate_up.shape
    grad = torch.empty_like(gate_up)
    out = torch.empty(rows, double // 2, dtype=gate_up.dtype, device=gate_up.device) if again else None
    _backward(DTYPES[gate_up.dtype], ACTIVATIONS[activation], rows, double // 2, gate_up, dy.contiguous(), grad, out)
    return grad, out
