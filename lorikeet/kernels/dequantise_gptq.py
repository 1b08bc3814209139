"""The face of dequantise_gptq.cpp: GPTQ's codes to the dense matrix in one pass."""

from __future__ import annotations

from torch import Tensor

from lorikeet.kernels import DTYPES, Kernel

_dequantise = Kernel("dequantise_gptq", "dequantise_gptq")


def dequantise(
    packed: Tensor, zeros: Tensor, scales: Tensor, g_idx: Tensor | None, out: Tensor, *, bits: int, group_size: int
) -> None:
    """Fill `out` [n, in] from packed [n, bytes] uint8, zeros [n, groups] uint8, scales [n, groups] and, where inputs
    are not grouped in their order, g_idx [in] int32. All contiguous."""
    rows, width = out.shape
    sizes = rows, width, packed.shape[1], zeros.shape[1], group_size
    _dequantise(DTYPES[out.dtype], bits, *sizes, packed, zeros, scales.float(), g_idx, out)
