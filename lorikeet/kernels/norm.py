"""The face of norm.cpp: RMSNorm and its gradient in one pass each."""

from __future__ import annotations

import torch
from torch import Tensor

from lorikeet.kernels import DTYPES, Kernel

_forward, _backward = Kernel("norm", "norm_forward"), Kernel("norm", "norm_backward")


def forward(x: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    """x [N, D] (rows may be strided), weight [D] -> y [N, D] and 1 / rms [N, 1] float32."""
    rows, width = x.shape
    y = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    _forward(DTYPES[x.dtype], rows, width, x.stride(0), x, weight, eps, offset, y, scale)
    return y, scale


def backward(x: Tensor, weight: Tensor, scale: Tensor, offset: float, dy: Tensor) -> Tensor:
    """The gradient for x, from what `forward` gave and dy [N, D]."""
    rows, width = x.shape
    dx = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    _backward(DTYPES[x.dtype], rows, width, x.stride(0), x, weight, offset, scale, dy.contiguous(), dx)
    return dx
