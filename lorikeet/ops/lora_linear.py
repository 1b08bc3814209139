"""A frozen linear, and the same with low-rank updates: y = x W^T + b + s (x A^T) B^T  (Hu et al. 2021, LoRA).

One autograd function for a whole group of linears that read the same x (q, k and v; gate and up): one matmul with the
frozen weights, one thin matmul with all A's side by side, and a small one per member with its B. Kept for the backward
pass: x and z = x A^T [T, sum of R]. Gradients, with dz_i = s_i dy_i B_i:

    dx = dy W + dz A        dA = dz^T x        dB_i = s_i dy_i^T z_i        db = sum over T of dy

W is asked for its dense form in each pass and never kept, so any storage of the frozen weight serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorikeet.quant._contract import FrozenWeight


@dataclass(frozen=True)
class LowRank:
    """Where one member of a group gets its update: `rows` of the output, with factor `scaling`."""

    rows: slice
    scaling: float


def reference_lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    members: Sequence[LowRank],
    factors: Sequence[Tensor],
    keep: Tensor | None = None,
) -> Tensor:
    """The definition. x [T, in], weight [out, in], factors A [R, in], B [rows, R] in turn -> [T, out].

    `keep` [T, in] is dropout's mask, already divided by the probability to keep."""
    y = x @ weight.T if bias is None else x @ weight.T + bias.to(x.dtype)
    dropped = x if keep is None else x * keep
    update = torch.zeros_like(y)
    for member, a, b in zip(members, factors[::2], factors[1::2]):
        update[:, member.rows] = member.scaling * (dropped @ a.to(x.dtype).T) @ b.to(x.dtype).T
    return y + update


class LoraLinearFunction(torch.autograd.Function):
    """Arguments: x, the frozen weight, a bias [out] or None, the members, dropout's p, then A, B of each member."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: FrozenWeight,
        bias: Tensor | None,
        members: Sequence[LowRank],
        dropout: float,
        *factors: Tensor,
    ) -> Tensor:
        y = weight.linear(x)
        if bias is not None:
            y = y + bias.to(y.dtype)
        keep = z = None
        if members:
            if dropout > 0:
                keep = torch.rand_like(x, dtype=torch.float32) >= dropout
            dropped = _drop(x, keep, dropout)
            z = dropped @ _stack(factors[::2], x.dtype).T
            for member, part, b in zip(members, _split(z, factors), factors[1::2]):
                rows = y[:, member.rows]
                torch.addmm(rows, part, b.to(x.dtype).T, alpha=member.scaling, out=rows)
        ctx.save_for_backward(x if members else None, z, keep, bias, *factors)
        ctx.weight, ctx.members, ctx.dropout = weight, members, dropout
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, z, keep, bias, *factors = ctx.saved_tensors
        dx = ctx.weight.backward(dy) if ctx.needs_input_grad[0] else None
        dbias = dy.sum(0, dtype=bias.dtype) if bias is not None and ctx.needs_input_grad[2] else None
        if not ctx.members:
            return dx, None, dbias, None, None
        dz = torch.empty_like(z)
        dfactors: list[Tensor] = []
        for member, part, dpart, b in zip(ctx.members, _split(z, factors), _split(dz, factors), factors[1::2]):
            drows = dy[:, member.rows]
            dpart.copy_(drows @ b.to(dy.dtype)).mul_(member.scaling)
            dfactors += [b, (drows.T @ part).to(b.dtype).mul_(member.scaling)]
        dropped = _drop(x, keep, ctx.dropout)
        da = dz.T @ dropped
        for i, part in enumerate(da.split([a.shape[0] for a in factors[::2]])):
            dfactors[2 * i] = part.to(factors[2 * i].dtype)
        if dx is not None:
            dinput = dz @ _stack(factors[::2], dy.dtype)
            dx = dx + _drop(dinput, keep, ctx.dropout)
        return dx, None, dbias, None, None, *dfactors


def _stack(matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([matrix.to(dtype) for matrix in matrices])


def _split(z: Tensor, factors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return z.split([a.shape[0] for a in factors[::2]], dim=-1)


def _drop(x: Tensor, keep: Tensor | None, dropout: float) -> Tensor:
    return x if keep is None else x * keep / (1 - dropout)


def lora_linear(
    x: Tensor,
    weight: FrozenWeight,
    bias: Tensor | None = None,
    members: Sequence[LowRank] = (),
    factors: Sequence[Tensor] = (),
    dropout: float = 0.0,
) -> Tensor:
    """x [T, in] -> [T, out]. Without members it is the frozen linear. Dropout draws from torch's global generator."""
    assert len(factors) == 2 * len(members)
    return LoraLinearFunction.apply(x, weight, bias, members, dropout, *factors)
