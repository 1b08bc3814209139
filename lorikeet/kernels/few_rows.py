"""The face of few_rows.cpp: products of so few rows that reading the weights is what takes the time."""

from __future__ import annotations

import torch
from torch import Tensor

from lorikeet import kernels
from lorikeet.kernels import Argument, Kernel
from lorikeet.kernels.counting import count
from lorikeet.kernels.linear import computes_with

# with more rows the matmuls of linear.cpp are as fast, or where it does not serve PyTorch's
MOST_ROWS, MOST_ROWS_ON_VECTORS = 96, 64
_product = Kernel("few_rows", "few_rows_product")
_int8 = Kernel("few_rows", "few_rows_int8")
_four_bit = Kernel("few_rows", "few_rows_four_bit")
_gptq = Kernel("few_rows", "few_rows_gptq")
Second = tuple[Tensor, Tensor, Tensor]  # see dequantise.py


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether x [T, in] and a dense weight [out, in] are for this kernel."""
    return serves_sizes(x, *weight.shape) and kernels.serves(x, weight) and weight.stride(1) == 1


def serves_sizes(x: Tensor, width: int, depth: int) -> bool:
    """The same for a weight [width, depth] that is quantised: its dense form is never whole in memory."""
    return (
        x.dtype == torch.bfloat16
        and kernels.serves(x)
        and x.shape[0] <= (MOST_ROWS if computes_with() == "tiles" else MOST_ROWS_ON_VECTORS)
        and x.stride(1) == 1
        and width % 16 == 0
        and depth % 32 == 0
    )


def keeps_pace() -> bool:
    """Whether products with quantised weights take about as long as with dense ones: on a processor that multiplies
    bfloat16. With AVX2 (of 4096 x 4096, one row) 4-bit weights took 4 times as long and int8 twice, with AVX-512 alone
    1.4 times and twice."""
    return computes_with() is not None


def forward(x: Tensor, weight: Tensor, z: Tensor | None = None, low: Tensor | None = None) -> Tensor:
    """x [T, in] W^T + z [T, S] low^T -> [T, out], for weight [out, in] and low [out, S]; S a multiple of 32."""
    return _call(_product, weight.shape[0], x, z, low, weight, weight.stride(0))


def int8(x: Tensor, z: Tensor | None, low: Tensor | None, codes: Tensor, absmax: Tensor) -> Tensor:
    """`forward` with a weight of codes [out, in] int8 and absmax [out, 1]."""
    return _call(_int8, len(codes), x, z, low, codes, absmax)


def four_bit(
    x: Tensor,
    z: Tensor | None,
    low: Tensor | None,
    codes: Tensor,
    absmax: Tensor,
    second: Second | None,
    table: Tensor,
    block_size: int,
) -> Tensor:
    """`forward` with a weight as in dequantise.py's `four_bit`."""
    scale, offset, numbers = second or (None, None, None)
    return _call(_four_bit, len(codes), x, z, low, block_size, table, codes, absmax, scale, offset, numbers)


def gptq(
    x: Tensor,
    z: Tensor | None,
    low: Tensor | None,
    packed: Tensor,
    zeros: Tensor,
    scales: Tensor,
    g_idx: Tensor | None,
    *,
    bits: int,
    group_size: int,
) -> Tensor:
    """`forward` with a weight as in dequantise_gptq.py's `dequantise`."""
    sizes = bits, packed.shape[1], zeros.shape[1], group_size
    return _call(_gptq, len(packed), x, z, low, *sizes, packed, zeros, scales.float(), g_idx)


def _call(kernel: Kernel, width: int, x: Tensor, z: Tensor | None, low: Tensor | None, *weight: Argument) -> Tensor:
    rows, depth = x.shape
    y = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    rank, z_stride, low_stride = (0, 0, 0) if z is None or low is None else (z.shape[1], z.stride(0), low.stride(0))
    count("linear", 2.0 * rows * width * (depth + rank))
    kernel(rows, depth, width, x, x.stride(0), rank, z, z_stride, low, low_stride, y, width, *weight)
    return y
