"""GPTQ (Frantar et al. 2022): codes for a matrix so that its outputs change least on the inputs it will see.

With H = X^T X of calibration inputs, the columns of W are rounded one after another, and the error of each is spread
over those not yet rounded so that |X (W - W')^T| stays small. Everything follows from U, the upper Cholesky factor of
H^-1 (a little of H's mean diagonal is added to H first, so that it can be inverted):

    e = (w_i - w_i') / U_ii          w_j <- w_j - e U_ij  for j > i

Columns whose inputs are large are best rounded first, while there are others to take their error (`desc_act`). Where
groups are then formed in that order, each input names its group (g_idx) and reading is slower. By default groups keep
the inputs' own order and only the rounding goes by size: their grids are then fixed beforehand (`static_groups`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from lorikeet.base.errors import ModelError
from lorikeet.base.options import Options
from lorikeet.quant import _gptq_layout as layout
from lorikeet.quant._gptq_round import grid, round_to_nearest, to_codes

_BLOCK = 128  # columns whose errors are spread at once
_TRIES = 6  # how often the damping is raised tenfold


class SolverOptions(Options):
    """How a matrix is rounded. Names and meanings are AutoGPTQ's and gptqmodel's."""

    bits: Literal[2, 3, 4, 8] = Field(4, description="Bits of a weight.")
    group_size: int = Field(128, description="Inputs that share a scale and a zero point; -1: all inputs of a row.")
    desc_act: bool = Field(True, description="Round the columns of the largest inputs first.")
    static_groups: bool = Field(True, description="Groups keep the inputs' order, whatever the order of rounding.")
    sym: bool = Field(True, description="The zero point in the middle of the grid.")
    damp_percent: float = Field(0.01, gt=0, lt=1, description="Share of H's mean diagonal that is added to it.")
    mse: bool = Field(False, description="Look for the grid with the least error, not the one that clips nothing.")

    @field_validator("group_size")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError("needs a number above 0, or -1 for whole rows")
        return value


@dataclass(frozen=True)
class Solved:
    """A matrix in GPTQ's form. Errors are |X (W - W')^T|^2 / |X W^T|^2 over the calibration inputs."""

    codes: Tensor  # [out, in] uint8, columns in the inputs' own order
    zeros: Tensor  # [out, groups] uint8
    scales: Tensor  # [out, groups] fp16
    g_idx: Tensor  # [in] int32
    error: float = math.nan
    nearest_error: float = math.nan  # of rounding to nearest on the same grid size

    def dense(self) -> Tensor:
        """[out, in] float32."""
        group = self.g_idx.long()
        return (self.codes.float() - self.zeros.float()[:, group]) * self.scales.float()[:, group]

    def parts(self, bits: int, rows: slice, *, v1: bool) -> dict[str, Tensor]:
        """The tensors of a file for some rows: one member of a group."""
        packed = layout.pack(self.codes[rows], bits)
        return layout.to_parts(packed, self.zeros[rows], self.scales[rows], self.g_idx, bits=bits, v1=v1)


class Hessian:
    """H = 2/n X^T X [in, in] in float32, gathered batch by batch."""

    def __init__(self, width: int, device: torch.device):
        self.matrix, self.rows = torch.zeros(width, width, device=device), 0.0

    def add(self, x: Tensor, weight: float = 1.0) -> None:
        """Inputs x [T, in], each of which counts as `weight` of them."""
        if not len(x):
            return
        x, total = x.float(), self.rows + weight * len(x)
        self.matrix.mul_(self.rows / total).addmm_(x.T, x, alpha=2 * weight / total)
        self.rows = total

    def include(self, other: Hessian, rows: float) -> None:
        """The inputs that `other` was made of, counting as `rows` of them all together."""
        total = self.rows + rows
        self.matrix.mul_(self.rows / total).add_(other.matrix, alpha=rows / total)
        self.rows = total


@torch.no_grad()
def solve(weight: Tensor, hessian: Tensor, options: SolverOptions) -> Solved:
    """Codes for `weight` [out, in], whose inputs gave `hessian` [in, in]. Raises ModelError where it is not finite or
    cannot be inverted whatever the damping."""
    weight, hessian = weight.float(), hessian.float()
    width = weight.shape[1]
    if not (torch.isfinite(hessian).all() and torch.isfinite(weight).all()):
        raise ModelError("numbers that are not finite", given="in the weights or in what they were fed", try_=None)
    size = width if options.group_size == -1 else min(options.group_size, width)
    seen = hessian.diagonal() > 0
    worked = torch.where(seen, weight, 0)  # an input that is always 0 may have any weight
    damped = hessian + torch.diag((~seen).float())
    order = torch.argsort(damped.diagonal(), descending=True) if options.desc_act else torch.arange(width)
    order = order.to(weight.device)
    ordered = options.desc_act and not options.static_groups  # whether groups are formed in the order of rounding
    fixed = None if ordered or not options.desc_act else _grids(worked, size, options)
    group = layout.in_order(width, size).to(weight.device).long()
    upper = _upper(damped[order][:, order], options.damp_percent)
    of_column = group if ordered else group[order]
    found, scales, zeros = _columns(worked[:, order].T.contiguous(), upper, size, options, fixed, of_column)
    codes = torch.empty_like(found, dtype=torch.uint8)
    codes[:, order] = found.to(torch.uint8)
    g_idx = group.clone()
    if ordered:
        g_idx[order] = group
    solved = Solved(codes, zeros.to(torch.uint8), scales.half(), g_idx.int())
    nearest = _error(weight, _nearest(weight, size, options), hessian)
    return replace(solved, error=_error(weight, solved.dense(), hessian), nearest_error=nearest)


def _grids(weight: Tensor, size: int, options: SolverOptions) -> tuple[Tensor, Tensor]:
    """(scales, zeros) [out, groups] of groups in the inputs' order."""
    found = [grid(part, options.bits, sym=options.sym, search=options.mse) for part in weight.split(size, dim=1)]
    return torch.stack([scales for scales, _ in found], 1), torch.stack([zeros for _, zeros in found], 1)


def _columns(
    weight: Tensor, upper: Tensor, size: int, options: SolverOptions, fixed: tuple[Tensor, Tensor] | None, group: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Round the columns of a matrix one after another: `weight` [in, out] is its transpose, and is overwritten.

    `group` [in] is each column's group. Its grid is `fixed`, or made of its columns when the first of them is reached;
    they have then taken the errors of all columns before, because blocks end where groups end."""
    width, rows = weight.shape
    codes, groups = torch.empty_like(weight), math.ceil(width / size)
    scales, zeros = fixed or (weight.new_empty(rows, groups), weight.new_empty(rows, groups))
    numbers = group.tolist()
    for start, stop in _blocks(width, size):
        part, factor = weight[start:stop], upper[start:stop, start:stop]
        errors, pivots = torch.empty_like(part), factor.diagonal().tolist()
        for i in range(stop - start):
            at = numbers[start + i]
            if fixed is None and (start + i) % size == 0:
                members = weight[start + i : start + i + size].T
                scales[:, at], zeros[:, at] = grid(members, options.bits, sym=options.sym, search=options.mse)
            scale, zero = scales[:, at], zeros[:, at]
            code = to_codes(part[i], scale, zero, options.bits)
            codes[start + i] = code
            errors[i] = (part[i] - (code - zero) * scale) / pivots[i]
            part[i + 1 :].addr_(factor[i, i + 1 :], errors[i], alpha=-1)
        weight[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return codes.T, scales, zeros


def _blocks(width: int, size: int) -> list[tuple[int, int]]:
    """Columns in runs of about 128: several whole groups of `size`, or parts of one."""
    together = size * max(1, _BLOCK // size)
    edges = [*range(0, width, together), width]
    return [
        (start, min(start + _BLOCK, stop)) for first, stop in pairwise(edges) for start in range(first, stop, _BLOCK)
    ]


def _upper(hessian: Tensor, damp: float) -> Tensor:
    """U with U^T U = (H + damp * mean diagonal)^-1; the damping is raised where that has no factor."""
    mean = hessian.diagonal().mean()
    eye = torch.eye(len(hessian), device=hessian.device)
    for i in range(_TRIES):
        lower, failed = torch.linalg.cholesky_ex(hessian + eye * mean * min(damp * 10**i, 1.0))
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed and torch.isfinite(upper).all():
            return upper
    raise ModelError(
        "the calibration inputs give no usable Hessian", given=f"mean diagonal {mean:.3g}", try_="more calibration rows"
    )


def _nearest(weight: Tensor, size: int, options: SolverOptions) -> Tensor:
    codes, zeros, scales = round_to_nearest(weight, options.bits, size, sym=options.sym)
    in_order = layout.in_order(weight.shape[1], size)
    return Solved(codes, zeros, scales, in_order).dense()


def _error(weight: Tensor, other: Tensor, hessian: Tensor) -> float:
    """|X (W - W')^T|^2 / |X W^T|^2, from H alone."""
    whole = ((weight @ hessian) * weight).sum()
    gone = weight - other
    return float(((gone @ hessian) * gone).sum() / whole) if whole > 0 else 0.0
