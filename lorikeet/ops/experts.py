"""A mixture of experts (Shazeer et al. 2017): each token goes through the few experts its router chose.

    y[t] = sum over the k chosen e of  share[t, e] * down_e(act(gate_e x[t]) * up_e x[t])

with a low-rank update on any of an expert's linears, as in ops/lora_linear.py. Tokens are sorted by expert and each
expert computes its own; an expert without tokens is never touched, so a quantised one stays as it is. Kept for the
backward pass: x, the routing and gate_up [S, 2F], where S = T k; the rest is a cheap function of these:

    g = dy Wd      d share = g . h      dh = share g      (h = act(gate) * up, so no second pass through down)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lorikeet.ops.lora_linear import LowRank
from lorikeet.ops.swiglu import Activation, reference_swiglu, swiglu
from lorikeet.quant._contract import FrozenWeight


@dataclass(frozen=True)
class Experts:
    """E experts: `gate_up` with E * 2F rows (each expert's gate, then its up) and `down` with E * D rows.

    The members say which rows of one expert get an update: A [E, R, in] and B [E, rows, R] belong to each. `trained`
    are rows of one expert whose weights train: to each belongs a parameter [E, rows, in], and the storage knows it."""

    count: int
    gate_up: FrozenWeight
    down: FrozenWeight
    activation: Activation = "silu"
    gate_up_members: tuple[LowRank, ...] = ()
    down_members: tuple[LowRank, ...] = ()
    gate_up_trained: tuple[slice, ...] = ()
    down_trained: tuple[slice, ...] = ()
    dropout: float = 0.0

    def weight(self, which: FrozenWeight, expert: int, dtype: torch.dtype) -> Tensor:
        """One expert's matrix [out, in]."""
        size = which.out_features // self.count
        return which.rows(expert * size, (expert + 1) * size, dtype)


def reference_experts(
    x: Tensor,
    chosen: Tensor,
    share: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    activation: Activation = "silu",
    gate_up_members: Sequence[LowRank] = (),
    down_members: Sequence[LowRank] = (),
    factors: Sequence[Tensor] = (),
) -> Tensor:
    """The definition. x [T, D], chosen and share [T, k], gate_up [E, 2F, D], down [E, D, F] -> [T, D]."""
    pairs = list(zip(factors[::2], factors[1::2]))
    split = len(gate_up_members)

    def updated(weight: Tensor, expert: int, members: Sequence[LowRank], pairs: Sequence[tuple[Tensor, Tensor]]) -> Any:
        for member, (a, b) in zip(members, pairs):
            update = F.pad(b[expert] @ a[expert], (0, 0, member.rows.start, len(weight) - member.rows.stop))
            weight = weight + member.scaling * update
        return weight

    y = []
    for token, experts, shares in zip(x, chosen.tolist(), share):
        total = torch.zeros_like(token)
        for expert, weight in zip(experts, shares):
            h = reference_swiglu(updated(gate_up[expert], expert, gate_up_members, pairs[:split]) @ token, activation)
            total = total + weight * (updated(down[expert], expert, down_members, pairs[split:]) @ h)
        y.append(total)
    return torch.stack(y) if y else x.new_zeros(x.shape)


class ExpertsFunction(torch.autograd.Function):
    """Arguments: x, chosen, share, the experts, then A, B of each member and what else trains: gate_up's first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, chosen: Tensor, share: Tensor, experts: Experts, *tensors: Tensor) -> Tensor:
        split = 2 * (len(experts.gate_up_members) + len(experts.down_members))
        factors, trained = tensors[:split], tensors[split:]
        order, counts = _sort(chosen, experts.count)
        kept = x.new_empty(len(order), experts.gate_up.out_features // experts.count)
        y = torch.zeros_like(x, dtype=_wide(x.dtype))
        keep_in = keep_mid = None
        if experts.dropout > 0 and factors:
            keep_in = _mask(len(order), x.shape[1], x.device, experts.dropout)
            keep_mid = _mask(len(order), kept.shape[1] // 2, x.device, experts.dropout)
        for expert, places, tokens in _visit(order, counts, chosen.shape[1]):
            first, second = _halves(experts, factors, expert, x.dtype)
            mine = _padded(x, tokens)
            weight = experts.weight(experts.gate_up, expert, x.dtype)
            gate_up = _linear(mine, weight, first, _scale(keep_in, places, mine, experts.dropout))
            kept[places] = gate_up[: len(tokens)]
            h = swiglu(gate_up, experts.activation)
            weight = experts.weight(experts.down, expert, x.dtype)
            part = _linear(h, weight, second, _scale(keep_mid, places, h, experts.dropout))[: len(tokens)]
            y.index_add_(0, tokens, part * share.flatten()[order[places], None].to(y.dtype))
        ctx.save_for_backward(x, chosen, share, order, kept, keep_in, keep_mid, *factors)
        ctx.experts, ctx.counts, ctx.trained = experts, counts, [(one.shape, one.dtype) for one in trained]
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, chosen, share, order, kept, keep_in, keep_mid, *factors = ctx.saved_tensors
        experts = ctx.experts
        dx = torch.zeros_like(x, dtype=_wide(x.dtype)) if ctx.needs_input_grad[0] else None
        dshare = torch.zeros_like(share.flatten())
        # experts without tokens: zero, so that a step's gradients do not depend on how it was cut
        dfactors = [torch.zeros_like(factor) for factor in factors]
        dtrained = [torch.zeros(shape, dtype=dtype, device=x.device) for shape, dtype in ctx.trained]
        split = len(experts.gate_up_trained)
        for expert, places, tokens in _visit(order, ctx.counts, chosen.shape[1]):
            first, second = _halves(experts, factors, expert, x.dtype)
            dfirst, dsecond = _halves(experts, dfactors, expert)
            routed = order[places]
            with torch.enable_grad():
                gate_up = _pad(kept[places]).detach().requires_grad_()
                h = swiglu(gate_up, experts.activation)
            part = _pad(share.flatten()[routed, None]).to(x.dtype)
            mine_dy = _padded(dy, tokens)
            weight = experts.weight(experts.down, expert, x.dtype)
            mid = _scale(keep_mid, places, h, experts.dropout)
            g = _backward(mine_dy, part, h.detach(), weight, second, dsecond, mid)
            for rows, gradient in zip(experts.down_trained, dtrained[split:]):
                gradient[expert].copy_((mine_dy * part)[:, rows].T @ h.detach())
            dshare[routed] = (g * h.detach()).sum(1, dtype=_wide(x.dtype))[: len(tokens)].to(dshare.dtype)
            (dgate_up,) = torch.autograd.grad(h, gate_up, g * part)
            if dx is None and not first and not experts.gate_up_trained:
                continue
            mine = _padded(x, tokens)
            for rows, gradient in zip(experts.gate_up_trained, dtrained):
                gradient[expert].copy_(dgate_up[:, rows].T @ mine)
            weight = experts.weight(experts.gate_up, expert, x.dtype)
            found = _backward(
                dgate_up, None, mine, weight, first, dfirst, _scale(keep_in, places, mine, experts.dropout)
            )
            if dx is not None:
                dx.index_add_(0, tokens, found[: len(tokens)].to(dx.dtype))
        return None if dx is None else dx.to(x.dtype), None, dshare.view_as(share), None, *dfactors, *dtrained


Update = tuple[LowRank, Tensor, Tensor]  # of one expert: where, A [R, in], B [rows, R]


def _sort(chosen: Tensor, count: int) -> tuple[Tensor, list[int]]:
    """(the S = T k places of `chosen`, sorted by expert and then by token; how many each expert has)."""
    flat = chosen.flatten()
    return torch.argsort(flat, stable=True), torch.bincount(flat, minlength=count).tolist()


def _visit(order: Tensor, counts: list[int], k: int) -> Iterator[tuple[int, slice, Tensor]]:
    """(expert, its places in the sorted order, its tokens) of each expert that has some."""
    start = 0
    for expert, count in enumerate(counts):
        if count:
            places = slice(start, start + count)
            yield expert, places, order[places] // k
        start += count


def _halves(
    experts: Experts, factors: Sequence[Tensor], expert: int, dtype: torch.dtype | None = None
) -> tuple[list[Update], list[Update]]:
    """One expert's updates on gate_up and on down: views, or copies in `dtype`."""
    members = (*experts.gate_up_members, *experts.down_members)
    mine = [factor[expert] if dtype is None else factor[expert].to(dtype) for factor in factors]
    updates = list(zip(members, mine[::2], mine[1::2]))
    return updates[: len(experts.gate_up_members)], updates[len(experts.gate_up_members) :]


def _linear(x: Tensor, weight: Tensor, updates: Sequence[Update], keep: Tensor | None) -> Tensor:
    y = x @ weight.T
    dropped = x if keep is None else x * keep
    for member, a, b in updates:
        y[:, member.rows] += member.scaling * ((dropped @ a.T) @ b.T)
    return y


def _backward(
    dy: Tensor,
    share: Tensor | None,
    x: Tensor,
    weight: Tensor,
    updates: Sequence[Update],
    gradients: Sequence[Update],
    keep: Tensor | None,
) -> Tensor:
    """dx of `_linear` for dy [n, out]; the gradients of A and B, those of share * y, are written into `gradients`."""
    dx = dy @ weight
    dropped = x if keep is None else x * keep
    for (member, a, b), (_, da, db) in zip(updates, gradients):
        drows = dy[:, member.rows] * member.scaling
        dz = drows @ b
        dx += dz @ a if keep is None else (dz @ a) * keep
        if share is not None:
            drows, dz = drows * share, dz * share
        db.copy_(drows.T @ (dropped @ a.T))
        da.copy_(dz.T @ dropped)
    return dx


def _padded(x: Tensor, tokens: Tensor) -> Tensor:
    """Rows `tokens` of x, then zeros up to a size that repeats."""
    return _pad(x.index_select(0, tokens))


def _pad(x: Tensor) -> Tensor:
    """oneDNN makes and keeps a kernel for every new matmul shape (docs/benchmarks.md), and experts' shares differ with
    every row: sizes are powers of two up to 32, then multiples of 32."""
    rows = len(x)
    size = 1 << (rows - 1).bit_length() if rows <= 32 else -(-rows // 32) * 32
    return F.pad(x, (0, 0, 0, size - rows))


def _mask(rows: int, width: int, device: torch.device, dropout: float) -> Tensor:
    return torch.rand(rows, width, device=device) >= dropout


def _scale(keep: Tensor | None, places: slice, x: Tensor, dropout: float) -> Tensor | None:
    """Dropout's factor for the padded rows of one expert."""
    return None if keep is None else _pad(keep[places].to(x.dtype) / (1 - dropout))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Sums over experts are float32, or wider where the model is."""
    return torch.promote_types(dtype, torch.float32)


def mixture(
    x: Tensor,
    chosen: Tensor,
    share: Tensor,
    experts: Experts,
    factors: Sequence[Tensor] = (),
    trained: Sequence[Tensor] = (),
) -> Tensor:
    """x [T, D], chosen [T, k] int64 (no expert twice for a token), share [T, k] -> [T, D].

    `factors` are A and B of each member in turn, gate_up's first, and `trained` the parameters of the rows that train,
    in the same order. Dropout draws from torch's global generator."""
    assert len(factors) == 2 * (len(experts.gate_up_members) + len(experts.down_members))
    assert len(trained) == len(experts.gate_up_trained) + len(experts.down_trained)
    return ExpertsFunction.apply(x, chosen, share, experts, *factors, *trained)
