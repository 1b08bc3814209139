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

from lorikeet.kernels import linear as tiles
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
        keep = torch.rand_like(x, dtype=torch.float32) >= dropout if members and dropout > 0 else None
        ctx.tiles = _tiles_serve(x, weight, keep)
        if ctx.tiles:
            y, *low = _tiles_forward(x, weight, members, factors)
        else:
            y, *low = _plain_forward(x, weight, members, factors, keep, dropout)
        if bias is not None:
            y.add_(bias.to(y.dtype))
        ctx.prologue, ctx.weight, ctx.members, ctx.dropout, ctx.low = prologue, weight, members, dropout, len(low)
        keeps_source = members or prologue is not None
        ctx.save_for_backward(source if keeps_source else None, kept, keep, bias, *low, *factors)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), members = grads, ctx.members
        source, kept, keep, bias, *rest = ctx.saved_tensors
        low, factors = rest[: ctx.low], rest[ctx.low :]
        dbias = dy.sum(0, dtype=bias.dtype) if bias is not None and ctx.needs_input_grad[3] else None
        if ctx.tiles:
            dy, stacked = dy.contiguous(), _on_tiles(members, factors)
            dx, dz = _tiles_backward(dy, ctx.weight, stacked, low, ctx.needs_input_grad[0])
        else:
            dx, dz, dbs = _plain_backward(
                dy, ctx.weight, members, factors, low, keep, ctx.dropout, ctx.needs_input_grad[0]
            )
        x, dsource = source, dx
        if ctx.prologue is not None and dx is not None:
            dsource, x = ctx.prologue.backward(source, kept, dx, again=bool(members))
        elif ctx.prologue is not None and members:
            x, _ = ctx.prologue.forward(source)
        dfactors: list[Tensor] = []
        if members and ctx.tiles:
            found = tiles.factor_gradients(dy, dz, x, stacked, *low)
            dfactors = [grad.to(factor.dtype) for grad, factor in zip(found, factors)]
        elif members:
            da = dz.T @ _drop(x, keep, ctx.dropout)
            for a, b, part, db in zip(factors[::2], factors[1::2], _split(da, factors), dbs):
                dfactors += [part.to(a.dtype), db.to(b.dtype)]
        return dsource, None, None, dbias, None, None, *dfactors


def _plain_forward(
    x: Tensor,
    weight: FrozenWeight,
    members: Sequence[LowRank],
    factors: Sequence[Tensor],
    keep: Tensor | None,
    dropout: float,
) -> tuple[Tensor, ...]:
    """y, and z [T, S] (see `_stack`) where there are members."""
    if not members:
        return (weight.linear(x),)
    a_all, b_all = _stack(members, factors, weight.out_features, x.dtype)
    z = _drop(x, keep, dropout) @ a_all.T
    return _add_frozen(z @ b_all.T, x, weight), z


def _plain_backward(
    dy: Tensor,
    weight: FrozenWeight,
    members: Sequence[LowRank],
    factors: Sequence[Tensor],
    low: Sequence[Tensor],
    keep: Tensor | None,
    dropout: float,
    wants_input: bool,
) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    """dx, dz [T, S] and each member's dB."""
    if not members:
        return weight.backward(dy) if wants_input else None, dy, []
    (z,), (a_all, b_all) = low, _stack(members, factors, weight.out_features, dy.dtype)
    dz = dy @ b_all
    parts = zip(members, _split(z.T @ dy, factors), factors[1::2])
    # in the parameter's own layout: what accumulates on it is then one straight pass
    dbs = [torch.empty_like(b).copy_(part[:, member.rows].T).mul_(member.scaling) for member, part, b in parts]
    dx = _add_frozen(_drop(dz @ a_all, keep, dropout), dy, weight, back=True) if wants_input else None
    return dx, dz, dbs


def _add_frozen(y: Tensor, x: Tensor, weight: FrozenWeight, *, back: bool = False) -> Tensor:
    """y + x W^T in y, or y + x W. A large matmul that adds to what is there takes as long as alone; a thin one would
    read and write y [T, out] once more, and round the large sum a second time."""
    if _fused(weight):
        return y.add_(weight.backward(x) if back else weight.linear(x))
    dense = weight.dense(x.dtype)
    return y.addmm_(x, dense if back else dense.T)


def _stack(
    members: Sequence[LowRank], factors: Sequence[Tensor], out_features: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """A's one below the other [S, in], and B's times their scaling at their rows and columns [out, S], zeros between:
    one thin product for a group is a third of the time of one per member, and thin products are up to a third faster
    in this layout, which is the factors' own, than in its transpose."""
    a_s, b_s = factors[::2], factors[1::2]
    a_all = (a_s[0] if len(a_s) == 1 else torch.cat(list(a_s))).to(dtype)
    if len(members) == 1 and len(b_s[0]) == out_features:
        return a_all, (b_s[0] * members[0].scaling).to(dtype)
    b_all = a_all.new_zeros(out_features, len(a_all))
    for member, place, b in zip(members, b_all.split([a.shape[0] for a in a_s], dim=1), b_s):
        torch.mul(b, member.scaling, out=place[member.rows])
    return a_all, b_all


def _fused(weight: FrozenWeight) -> bool:
    """Whether its kind brings products of its own."""
    return type(weight).linear is not FrozenWeight.linear or type(weight).backward is not FrozenWeight.backward


def _tiles_serve(x: Tensor, weight: FrozenWeight, keep: Tensor | None) -> bool:
    """Whether the kernels of kernels/linear.py take this: they want the dense weight and have no dropout."""
    return keep is None and not _fused(weight) and tiles.serves(x, weight.out_features, weight.in_features)


def _on_tiles(members: Sequence[LowRank], factors: Sequence[Tensor]) -> tiles.Factors:
    return tiles.Factors(factors, [member.rows for member in members], [member.scaling for member in members])


def _tiles_forward(
    x: Tensor, weight: FrozenWeight, members: Sequence[LowRank], factors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """y, and where there are members what the kernels keep."""
    dense = weight.dense(x.dtype)
    if not members:
        return (tiles.forward(x, dense),)
    return tiles.low_rank_forward(x, dense, _on_tiles(members, factors))


def _tiles_backward(
    dy: Tensor,
    weight: FrozenWeight,
    stacked: tiles.Factors,
    low: Sequence[Tensor],
    wants_input: bool,
) -> tuple[Tensor | None, Tensor]:
    """dx and dz [T, S]."""
    dense = weight.dense(dy.dtype)
    if not low:
        return tiles.backward(dy, dense) if wants_input else None, dy
    return tiles.low_rank_backward(dy, dense, stacked, *low, wants_input=wants_input)


def _split(z: Tensor, factors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The members' rows of z [S, ...]."""
    return z.split([a.shape[0] for a in factors[::2]])


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
