"""The face of few_rows.cpp: products of so few rows that reading the weights is what takes the time."""

from __future__ import annotations

import torch
from torch import Tensor

from lorikeet import kernels
from lorikeet.kernels import Kernel
from lorikeet.kernels.counting import count
from lorikeet.kernels.linear import computes_with

# with more rows the matmuls of linear.cpp are as fast, or where it does not serve PyTorch's
MOST_ROWS, MOST_ROWS_ON_VECTORS = 96, 64
_product = Kernel("few_rows", "few_rows_product")


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether x [T, in] and a dense weight [out, in] are for this kernel."""
    return (
        x.dtype == torch.bfloat16
        and kernels.serves(x, weight)
        and x.shape[0] <= (MOST_ROWS if computes_with() == "tiles" else MOST_ROWS_ON_VECTORS)
        and x.stride(1) == 1
        and weight.stride(1) == 1
        and weight.shape[0] % 16 == 0
        and weight.shape[1] % 32 == 0
    )


def forward(x: Tensor, weight: Tensor, z: Tensor | None = None, low: Tensor | None = None) -> Tensor:
    """x [T, in] W^T + z [T, S] low^T -> [T, out], for weight [out, in] and low [out, S]; S a multiple of 32."""
    rows, width = x.shape[0], weight.shape[0]
    y = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    rank, z_stride, low_stride = (0, 0, 0) if z is None or low is None else (z.shape[1], z.stride(0), low.stride(0))
    count("linear", 2.0 * rows * width * (x.shape[1] + rank))
    _product(
        rows, x.shape[1], width, x, x.stride(0), weight, weight.stride(0),
        rank, z, z_stride, low, low_stride, y, width,
    )  # fmt: skip
    return y
