"""The face of dequantise.cpp: quantised rows to dense ones and back, bit for bit as quant/ defines it.

Each function returns None where the kernels do not serve (another device or dtype, no compiler): plain PyTorch then
computes, in quant/.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorikeet.kernels import DTYPES, Kernel, has_numbers, serves

Second = tuple[Tensor, Tensor, Tensor]  # of the second quantisation: scale, offset, the map of 256 numbers

_four_bit = Kernel("dequantise", "dequantise_four_bit")
_int8 = Kernel("dequantise", "dequantise_int8")
_quantise = Kernel("dequantise", "quantise_four_bit")


def four_bit(
    codes: Tensor,
    absmax: Tensor,
    second: Second | None,
    table: Tensor,
    block_size: int,
    width: int,
    dtype: torch.dtype,
) -> Tensor | None:
    """codes [n, ceil(width / 2)] and absmax [n, blocks] (float32, or uint8 with `second`) -> [n, width]."""
    out = _room(codes, width, dtype)
    if out is None:
        return None
    scale, offset, numbers = second or (None, None, None)
    if has_numbers(out):  # asked here: the table, which comes first, has numbers in a plan too
        _four_bit(
            DTYPES[out.dtype], len(codes), width, block_size, table, codes, absmax, scale, offset, numbers, out
        )  # fmt: skip
    return out if out.dtype == dtype else out.to(dtype)


def int8(codes: Tensor, absmax: Tensor, dtype: torch.dtype) -> Tensor | None:
    """codes [n, in] int8 and absmax [n, 1] -> [n, in]."""
    out = _room(codes, codes.shape[1], dtype)
    if out is None:
        return None
    _int8(DTYPES[out.dtype], len(codes), codes.shape[1], codes, absmax, out)
    return out if out.dtype == dtype else out.to(dtype)


def quantise_four_bit(weight: Tensor, bounds: Tensor, order: Tensor, block_size: int) -> tuple[Tensor, Tensor] | None:
    """weight [n, in] -> codes [n, ceil(in / 2)] uint8 and absmax [n, blocks] float32 (infinite where a weight is not
    finite). `bounds` [15] float32 and `order` [16] uint8: see the C++ side."""
    weight = weight.contiguous()
    if not serves(weight):
        return None
    rows, width = weight.shape
    codes = torch.empty(rows, -(-width // 2), dtype=torch.uint8, device=weight.device)
    absmax = torch.empty(rows, -(-width // block_size), dtype=torch.float32, device=weight.device)
    _quantise(DTYPES[weight.dtype], rows, width, block_size, bounds, order, weight, codes, absmax)
    return codes, absmax


def _room(codes: Tensor, width: int, dtype: torch.dtype) -> Tensor | None:
    """For the result, in float32 where the kernels do not know `dtype`; None where they do not serve."""
    out = torch.empty(len(codes), width, dtype=dtype if dtype in DTYPES else torch.float32, device=codes.device)
    return out if serves(out) else None
