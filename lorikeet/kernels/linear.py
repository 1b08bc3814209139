"""The face of linear.cpp: matmuls in bfloat16 (AMX or AVX-512), with low-rank updates in the same sums.

The factors of a group's members are laid side by side, each at its own columns of z and rows of y, padded with zeros
to a rank that is a multiple of 32: then one product serves all members. A pass of a group is one call or two: what
Python and PyTorch take for each of these small calls is time in which one thread waits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from lorikeet import kernels
from lorikeet.kernels import Kernel, build
from lorikeet.kernels.counting import count

MULTIPLE = 32  # of widths and ranks
LEAST_ROWS = 64  # for fewer, packing the weights costs more than it saves

_matmul, _forward = Kernel("linear", "linear_matmul"), Kernel("linear", "linear_low_rank_forward")
_updated = Kernel("linear", "linear_updated")
_backward, _gradients = Kernel("linear", "linear_low_rank_backward"), Kernel("linear", "linear_factor_gradients")


@cache
def computes_with() -> Literal["tiles", "pairs", None]:
    """Matrix tiles, if this processor has them and the system has lent them to this process, which it asks once; dot
    products of pairs (AVX-512's); or nothing."""
    library, answer = build.load("linear"), ctypes.c_int64(0)
    if library is None:
        return None
    library.linear_available(ctypes.byref(answer))
    return (None, "pairs", "tiles")[answer.value]


def serves(x: Tensor, out_features: int, in_features: int) -> bool:
    """Whether x [T, in] and a weight [out, in] of the same dtype are for this kernel."""
    return (
        x.dtype == torch.bfloat16
        and x.shape[0] >= LEAST_ROWS
        and kernels.serves(x)
        and computes_with() is not None
        and x.stride(1) == 1
        and out_features % MULTIPLE == 0
        and in_features % MULTIPLE == 0
    )


def forward(x: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
    """x [T, in] W^T -> [T, out], for weight [out, in]."""
    return _product(x, weight, weight.shape[0], True, out)


def backward(dy: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
    """dy [T, out] W -> [T, in], for weight [out, in]."""
    return _product(dy, weight, weight.shape[1], False, out)


def _product(x: Tensor, weight: Tensor, width: int, transposed: bool, out: Tensor | None) -> Tensor:
    size, inside = x.shape
    y = torch.empty(size, width, dtype=x.dtype, device=x.device) if out is None else out
    count("linear", 2.0 * size * width * inside)
    _matmul(size, inside, width, int(transposed), x, x.stride(0), weight, weight.stride(0), y)
    return y


def updated(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x [T, in] W^T + (x A^T) B^T -> [T, out], for weight [out, in], and A [S, in] and B [out, S] contiguous; S is a
    multiple of MULTIPLE."""
    (size, inside), (width, rank) = x.shape, b.shape
    y = torch.empty(size, width, dtype=x.dtype, device=x.device)
    z = torch.empty(size, rank, dtype=x.dtype, device=x.device)
    count("linear", 2.0 * size * (rank * inside + width * (inside + rank)))
    _updated(size, inside, width, rank, x, x.stride(0), weight, weight.stride(0), a, b, z, y)
    return y


class Factors:
    """A [R, in] and B [rows, R] of each member in turn, float32, with the rows of the output that they update."""

    def __init__(self, tensors: Sequence[Tensor], rows: Sequence[slice], scalings: Sequence[float]):
        self.tensors, self.rows, self.scalings = tensors, rows, scalings
        self.ranks = [a.shape[0] for a in tensors[::2]]
        self.used = sum(self.ranks)
        self.rank = self.used + -self.used % MULTIPLE  # S

    def table(self, pairs: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_int64]:
        """What linear.cpp reads of the members: `pairs` are two tensors for each, or None for one that is not read."""
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in pairs]
        about = zip(pointers[::2], pointers[1::2], self.ranks, self.rows)
        flat = chain.from_iterable((a, b, rank, place.start, place.stop - place.start) for a, b, rank, place in about)
        return (ctypes.c_int64 * (5 * len(self.ranks)))(*flat)

    def factors(self) -> ctypes.Array[ctypes.c_float]:
        """The scalings, for C++."""
        return (ctypes.c_float * len(self.scalings))(*self.scalings)


def low_rank_forward(x: Tensor, weight: Tensor, factors: Factors) -> tuple[Tensor, Tensor]:
    """x W^T + s (x A^T) B^T -> [T, out], and what `low_rank_backward` and `factor_gradients` want kept."""
    (size, inside), width, rank = x.shape, weight.shape[0], factors.rank
    y = torch.empty(size, width, dtype=x.dtype, device=x.device)
    kept = torch.empty(rank * (inside + width + size), dtype=x.dtype, device=x.device)
    count("linear", 2.0 * size * (rank * inside + width * (inside + rank)))
    if kernels.has_numbers(x):
        plain = [_plain(tensor) for tensor in factors.tensors]
        _forward(
            size, inside, width, rank, len(factors.ranks), factors.table(plain), factors.factors(), x, x.stride(0),
            weight, weight.stride(0), kept, y,
        )  # fmt: skip
    return y, kept


def low_rank_backward(
    dy: Tensor, weight: Tensor, factors: Factors, kept: Tensor, *, wants_input: bool
) -> tuple[Tensor | None, Tensor]:
    """dx [T, in] if it is wanted, and dz [T, S], for dy [T, out], contiguous."""
    (size, width), inside, rank = dy.shape, weight.shape[1], factors.rank
    dz = torch.empty(size, rank, dtype=dy.dtype, device=dy.device)
    dx = torch.empty(size, inside, dtype=dy.dtype, device=dy.device) if wants_input else None
    count("linear", 2.0 * size * (rank * width + (inside * (width + rank) if wants_input else 0)))
    _backward(size, inside, width, rank, kept, dy, weight, weight.stride(0), dz, dx)
    return dx, dz


def factor_gradients(dy: Tensor, dz: Tensor, x: Tensor, factors: Factors, kept: Tensor) -> list[Tensor]:
    """dA and dB of each member in turn, for dy [T, out] and dz [T, S], contiguous, and x [T, in]."""
    (size, width), inside, rank = dy.shape, x.shape[1], factors.rank
    da = torch.empty(factors.used, inside, dtype=torch.float32, device=dy.device)
    # in the parameters' own layout: what accumulates on them is then one straight pass
    dbs = [torch.empty_like(b, dtype=torch.float32) for b in factors.tensors[1::2]]
    count("linear", 2.0 * size * rank * (width + inside))
    if kernels.has_numbers(dy):
        pairs = chain.from_iterable((None, db) for db in dbs)
        _gradients(
            size, inside, width, rank, len(dbs), factors.table(list(pairs)), factors.factors(), kept, dy, dz,
            x, x.stride(0), da,
        )  # fmt: skip
    das = [da] if len(dbs) == 1 else da.split_with_sizes(factors.ranks)
    return list(chain.from_iterable(zip(das, dbs)))


def _plain(factor: Tensor) -> Tensor:
    ready = factor.dtype == torch.float32 and factor.is_contiguous()
    return factor if ready else factor.detach().float().contiguous()
