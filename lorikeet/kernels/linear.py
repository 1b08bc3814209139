"""The face of linear.cpp: matmuls on matrix tiles (AMX, bfloat16) with a low-rank update in the same sums.

The factors of a group's members are laid side by side, each at its own columns of z and rows of y, padded with zeros
to a rank that is a multiple of 32: then one product serves all members.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from lorikeet import kernels
from lorikeet.kernels import Kernel, build
from lorikeet.kernels.counting import count

MULTIPLE = 32  # of widths and ranks
LEAST_ROWS = 64  # for fewer, packing the weights costs more than it saves

_matmul, _thin = Kernel("linear", "linear_matmul"), Kernel("linear", "linear_thin_product")
_stack = Kernel("linear", "linear_stack")


@cache
def _tiles() -> bool:
    library, answer = build.load("linear"), ctypes.c_int64(0)
    if library is None:
        return False
    library.linear_available(ctypes.byref(answer))
    return bool(answer.value)


def serves(x: Tensor, out_features: int, in_features: int) -> bool:
    """Whether x [T, in] and a weight [out, in] of the same dtype are for this kernel."""
    return (
        x.dtype == torch.bfloat16
        and len(x) >= LEAST_ROWS
        and kernels.serves(x)
        and _tiles()
        and x.stride(1) == 1
        and out_features % MULTIPLE == 0
        and in_features % MULTIPLE == 0
    )


def forward(
    x: Tensor, weight: Tensor, z: Tensor | None = None, low: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """x [T, in] W^T + z [T, S] low^T -> [T, out], for weight [out, in] and low [out, S]."""
    return _product(x, weight, weight.shape[0], True, z, low, out)


def backward(
    dy: Tensor, weight: Tensor, dz: Tensor | None = None, low: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """dy [T, out] W + dz [T, S] low -> [T, in], for weight [out, in] and low [S, in]."""
    return _product(dy, weight, weight.shape[1], False, dz, low, out)


def _product(
    x: Tensor, weight: Tensor, width: int, transposed: bool, z: Tensor | None, low: Tensor | None, out: Tensor | None
) -> Tensor:
    y = torch.empty(len(x), width, dtype=x.dtype, device=x.device) if out is None else out
    rank, z_stride, low_stride = (0, 0, 0) if z is None or low is None else (z.shape[1], z.stride(0), low.stride(0))
    count("linear", 2.0 * len(x) * width * (x.shape[1] + rank))
    _matmul(
        len(x), x.shape[1], width, int(transposed), x, x.stride(0), weight, weight.stride(0),
        rank, z, z_stride, low, low_stride, y, width,
    )  # fmt: skip
    return y


def thin_product(a: Tensor, b: Tensor) -> Tensor:
    """a [T, S]^T b [T, N] -> [S, N] float32, for S and N multiples of 32."""
    out = torch.empty(a.shape[1], b.shape[1], dtype=torch.float32, device=a.device)
    count("linear", 2.0 * len(a) * a.shape[1] * b.shape[1])
    _thin(len(a), a.shape[1], b.shape[1], a, a.stride(0), b, b.stride(0), out)
    return out


def stack(
    factors: Sequence[Tensor], rows: Sequence[slice], scalings: Sequence[float], width: int
) -> tuple[Tensor, Tensor]:
    """A's below each other [S, in], and B's times their scaling at their rows and columns [width, S], zeros between;
    in bfloat16. `factors` are A [R, in], B [rows, R] of each member in turn, in float32."""
    ranks = [a.shape[0] for a in factors[::2]]
    total, inside = sum(ranks) + -sum(ranks) % MULTIPLE, factors[0].shape[1]
    a_all = torch.empty(total, inside, dtype=torch.bfloat16, device=factors[0].device)
    b_all = torch.empty(width, total, dtype=torch.bfloat16, device=factors[0].device)
    if kernels.has_numbers(a_all):
        kept = [_plain(factor) for factor in factors]
        about = [
            (a.data_ptr(), b.data_ptr(), rank, place.start, place.stop - place.start)
            for a, b, rank, place in zip(kept[::2], kept[1::2], ranks, rows)
        ]
        _stack(len(ranks), torch.tensor(about), torch.tensor(scalings), inside, width, total, a_all, b_all)
    return a_all, b_all


def _plain(factor: Tensor) -> Tensor:
    ready = factor.dtype == torch.float32 and factor.is_contiguous()
    return factor if ready else factor.detach().float().contiguous()
