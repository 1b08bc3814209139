"""The face of low_rank.cpp: a low-rank update's thin products and their gradients, one pass over each wide matrix.

For bfloat16 and float32 on any processor. The factors enter in float32 as they are trained, sums are float32, and z and
dz are rounded once, to the dtype of x. Where there are matrix tiles, linear.py makes the update within the big matmul.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorikeet.ops import kernels
from lorikeet.ops.counting import count
from lorikeet.ops.kernels import DTYPES, Kernel

MOST = 128  # of the ranks side by side
GROUP = 8  # the kernel takes so many ranks at once

_dots, _add = Kernel("low_rank", "low_rank_dots"), Kernel("low_rank", "low_rank_add")


def serves(ranks: int, *wide: Tensor) -> bool:
    """Whether the kernels take wide matrices [T, width] and so many ranks in all."""
    return 0 < ranks <= MOST and kernels.serves(*wide) and all(each.stride(-1) == 1 for each in wide)


def down(x: Tensor, a_stack: Tensor) -> Tensor:
    """x [T, in], A's below each other [S, in] -> z = x A^T [T, S] in x's dtype."""
    z = torch.empty(len(x), len(a_stack), dtype=x.dtype, device=x.device)
    _dot_products(x, _padded(a_stack), z, 1.0, None, None)
    return z


def up_add(y: Tensor, z: Tensor, bs: Sequence[Tensor], rows: Sequence[slice], scalings: Sequence[float]) -> None:
    """y[:, rows of i] += s_i z_i B_i^T in place, for y [T, out], z [T, S] and B_i [rows, R_i]."""
    for part, b, place, scaling in zip(_split(z, bs), bs, rows, scalings):
        _add_product(part, _padded(b.t()), scaling, y[:, place], None, None)


def backward_up(
    dy: Tensor, z: Tensor, bs: Sequence[Tensor], rows: Sequence[slice], scalings: Sequence[float]
) -> tuple[Tensor, list[Tensor]]:
    """dy [T, out], z [T, S] -> dz [T, S] in z's dtype and each dB_i [rows, R_i] float32."""
    dz, dbs = torch.empty_like(z), []
    for part, dpart, b, place, scaling in zip(_split(z, bs), _split(dz, bs), bs, rows, scalings):
        factor = _padded(b.t())
        gradient = torch.empty_like(factor)
        _dot_products(dy[:, place], factor, dpart, scaling, part, gradient)
        dbs.append(gradient[: b.shape[1]].t().contiguous())
    return dz, dbs


def backward_down(dz: Tensor, x: Tensor, a_stack: Tensor, dx: Tensor | None) -> Tensor:
    """dz [T, S], x [T, in] -> dA [S, in] float32; adds dz A onto dx [T, in] in place where it is given."""
    factor = _padded(a_stack)
    gradient = torch.empty_like(factor)
    _add_product(dz, factor, 1.0, dx, x, gradient)
    return gradient[: len(a_stack)]


def _dot_products(
    wide: Tensor, factor: Tensor, z: Tensor, scale: float, by: Tensor | None, gradient: Tensor | None
) -> None:
    (rows, width), ranks = wide.shape, z.shape[1]
    count("low_rank", (2.0 if by is None else 4.0) * rows * width * ranks)
    _dots(
        DTYPES[wide.dtype], rows, width, ranks, float(scale), wide, wide.stride(0), factor,
        z, z.stride(0), by, 0 if by is None else by.stride(0), gradient,
    )  # fmt: skip


def _add_product(
    z: Tensor, factor: Tensor, scale: float, changed: Tensor | None, wide: Tensor | None, gradient: Tensor | None
) -> None:
    (rows, ranks), width = z.shape, factor.shape[1]
    count("low_rank", 2.0 * rows * width * ranks * ((changed is not None) + (wide is not None)))
    _add(
        DTYPES[z.dtype], rows, width, ranks, float(scale), z, z.stride(0), factor,
        changed, 0 if changed is None else changed.stride(0), wide, 0 if wide is None else wide.stride(0), gradient,
    )  # fmt: skip


def _padded(factor: Tensor) -> Tensor:
    """[R, width] in float32, contiguous, with rows of zeros up to a multiple of GROUP."""
    missing = -len(factor) % GROUP
    if not missing:
        return factor.float().contiguous()
    out = torch.zeros(len(factor) + missing, factor.shape[1], dtype=torch.float32, device=factor.device)
    out[: len(factor)] = factor
    return out


def _split(z: Tensor, bs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return z.split([b.shape[1] for b in bs], dim=-1)
