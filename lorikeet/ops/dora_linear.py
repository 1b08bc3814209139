"""A frozen linear whose rows have trained lengths (Liu et al. 2024, DoRA): y = (m / n) (x W^T + s x A^T B^T) + b.

n [out] are the row norms of W + s B A, held constant for the gradient as the paper's section 4.3 and PEFT do. They
need no dense W + s B A: with the rows' squares |W|^2 kept from the start,

    n^2 = |W|^2 + 2 s (W A^T) . B + s^2 (B A A^T) . B        row by row

and W A^T is one thin pass through the frozen weight, as any storage of it computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorikeet.ops.lora_linear import LowRank, Prologue, lora_linear
from lorikeet.ops.scaled_linear import scale_outputs
from lorikeet.quant._contract import FrozenWeight

SQUARES_AT_ONCE = 1 << 22  # numbers of a weight that are float32 at a time


def reference_dora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    members: Sequence[LowRank],
    factors: Sequence[Tensor],
    magnitudes: Sequence[Tensor],
) -> Tensor:
    """The definition. x [T, in], weight [out, in], A [R, in], B [rows, R] in turn, m [rows] each -> [T, out]."""
    parts = list(torch.ones(len(weight), dtype=x.dtype).split(1))
    updated = list(weight.split(1))
    for member, a, b, m in zip(members, factors[::2], factors[1::2], magnitudes):
        dense = weight[member.rows] + member.scaling * b @ a
        updated[member.rows] = list(dense.split(1))
        parts[member.rows] = list((m / dense.detach().norm(dim=1)).split(1))
    y = (x @ torch.cat(updated).T) * torch.cat(parts)
    return y if bias is None else y + bias


def squared_rows(weight: FrozenWeight, rows: slice, dtype: torch.dtype) -> Tensor:
    """The sum of squares of each of a weight's `rows`, [rows] in `dtype`; a few rows are dense at a time."""
    size = max(1, SQUARES_AT_ONCE // weight.in_features)
    starts = range(rows.start, rows.stop, size)
    parts = [weight.rows(at, min(at + size, rows.stop), dtype).square().sum(1) for at in starts]
    return torch.cat(parts)


@torch.no_grad()
def row_norms(
    weight: FrozenWeight,
    members: Sequence[LowRank],
    factors: Sequence[Tensor],
    squares: Sequence[Tensor],
    dtype: torch.dtype,
) -> list[Tensor]:
    """n of each member [rows], in the dtype of `squares`, which are those of W's rows. W A^T is computed in `dtype`."""
    a_all = torch.cat(list(factors[::2])).to(dtype)
    products = weight.linear(a_all).split([len(a) for a in factors[::2]])  # A W^T of each, [R, out]
    found = []
    for member, a, b, square, product in zip(members, factors[::2], factors[1::2], squares, products):
        s, wide = member.scaling, square.dtype
        crossed = (product[:, member.rows].to(wide).T * b).sum(1)
        own = ((b @ (a @ a.T)) * b).sum(1)
        norm = (square + 2 * s * crossed + s * s * own).clamp_min(torch.finfo(wide).tiny)
        found.append(norm.sqrt())
    return found


def gains(norms: Sequence[Tensor], magnitudes: Sequence[Tensor], members: Sequence[LowRank], out: int) -> Tensor:
    """m / n - 1 of every row [out]; zero between the members."""
    parts, end = [], 0
    for member, norm, m in sorted(zip(members, norms, magnitudes), key=lambda one: one[0].rows.start):
        if member.rows.start > end:
            parts.append(norm.new_zeros(member.rows.start - end))
        parts.append((m - norm) / norm)
        end = member.rows.stop
    if end < out:
        parts.append(norms[0].new_zeros(out - end))
    return torch.cat(parts)


def dora_linear(
    x: Tensor,
    weight: FrozenWeight,
    bias: Tensor | None,
    members: Sequence[LowRank],
    factors: Sequence[Tensor],
    magnitudes: Sequence[Tensor],
    norms: Sequence[Tensor],
    dropout: float = 0.0,
    prologue: Prologue | None = None,
) -> Tensor:
    """x [T, in], or what the prologue makes of it -> [T, out], with `norms` from `row_norms`. Dropout is that of
    `lora_linear`: it drops inputs of the update, and W sees all of x."""
    u = lora_linear(x, weight, None, members, factors, dropout, prologue)
    return scale_outputs(u, gains(norms, magnitudes, members, weight.out_features), bias)
