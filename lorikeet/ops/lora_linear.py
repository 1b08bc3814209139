"""A frozen linear, and the same with low-rank updates: y = x W^T + b + s (x A^T) B^T  (Hu et al. 2021, LoRA).

One autograd function for a whole group of linears that read the same x (q, k and v; gate and up): one matmul with the
frozen weights, one thin matmul with all A's side by side, and a small one per member with its B. Kept for the backward
pass: x and z = x A^T [T, sum of R]. Gradients, with dz_i = s_i dy_i B_i:

    dx = dy W + dz A        dA = dz^T x        dB_i = s_i dy_i^T z_i        db = sum over T of dy

A prologue is what makes x of something else that is kept anyway (a norm of the residual stream, a gated unit of gate
and up): then that is kept, and x is made again in the backward pass, which costs one pass over memory.

W is asked for its dense form in each pass and never kept, so any storage of the frozen weight serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lorikeet.quant._contract import FrozenWeight


@dataclass(frozen=True)
class LowRank:
    """Where one member of a group gets its update: `rows` of the output, with factor `scaling`."""

    rows: slice
    scaling: float


class Prologue(Protocol):
    """What computes the linear's input x from its source."""

    def forward(self, source: Tensor) -> tuple[Tensor, Tensor | None]:
        """x, and what else `backward` wants kept."""
        ...

    def backward(
        self, source: Tensor, kept: Tensor | None, dx: Tensor, *, again: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The source's gradient, and with `again` x once more."""
        ...


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
    """Arguments: the source, its prologue or None, the frozen weight, a bias [out] or None, the members, dropout's p,
    then A, B of each member."""

    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        prologue: Prologue | None,
        weight: FrozenWeight,
        bias: Tensor | None,
        members: Sequence[LowRank],
        dropout: float,
        *factors: Tensor,
    ) -> Tensor:
        x, kept = (source, None) if prologue is None else prologue.forward(source)
        y = weight.linear(x)
        if bias is not None:
            y.add_(bias.to(y.dtype))
        keep = z = None
        if members:
            if dropout > 0:
                keep = torch.rand_like(x, dtype=torch.float32) >= dropout
            dropped = _drop(x, keep, dropout)
            z = dropped @ _stack(factors[::2], x.dtype).T
            for member, part, b in zip(members, _split(z, factors), factors[1::2]):
                rows = y[:, member.rows]
                torch.addmm(rows, part, b.to(x.dtype).T, alpha=member.scaling, out=rows)
        ctx.save_for_backward(source if members or prologue is not None else None, kept, z, keep, bias, *factors)
        ctx.prologue, ctx.weight, ctx.members, ctx.dropout = prologue, weight, members, dropout
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        source, kept, z, keep, bias, *factors = ctx.saved_tensors
        dx = ctx.weight.backward(dy) if ctx.needs_input_grad[0] else None
        dbias = dy.sum(0, dtype=bias.dtype) if bias is not None and ctx.needs_input_grad[3] else None
        dfactors: list[Tensor] = []
        if ctx.members:
            dz = torch.empty_like(z)
            for member, part, dpart, b in zip(ctx.members, _split(z, factors), _split(dz, factors), factors[1::2]):
                drows = dy[:, member.rows]
                dpart.copy_(drows @ b.to(dy.dtype)).mul_(member.scaling)
                dfactors += [b, (drows.T @ part).to(b.dtype).mul_(member.scaling)]
            if dx is not None and keep is None:
                dx.addmm_(dz, _stack(factors[::2], dy.dtype))
            elif dx is not None:
                dx.add_(_drop(dz @ _stack(factors[::2], dy.dtype), keep, ctx.dropout))
        x, dsource = source, dx
        if ctx.prologue is not None:
            if dx is not None:
                dsource, x = ctx.prologue.backward(source, kept, dx, again=bool(ctx.members))
            elif ctx.members:
                x, _ = ctx.prologue.forward(source)
        if ctx.members:
            da = dz.T @ _drop(x, keep, ctx.dropout)
            for i, part in enumerate(da.split([a.shape[0] for a in factors[::2]])):
                dfactors[2 * i] = part.to(factors[2 * i].dtype)
        return dsource, None, None, dbias, None, None, *dfactors


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
    prologue: Prologue | None = None,
) -> Tensor:
    """x [T, in] -> [T, out]; with a prologue, what it makes of x goes in. Without members it is the frozen linear.
    Dropout draws from torch's global generator."""
    assert len(factors) == 2 * len(members)
    return LoraLinearFunction.apply(x, prologue, weight, bias, members, dropout, *factors)
