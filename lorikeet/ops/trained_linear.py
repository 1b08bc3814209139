"""Linears whose weights train: y = x W^T + b, with W kept in float32 and rounded to x's dtype in each pass.

One autograd function for a group of linears that read the same x (q, k and v; gate and up), as in lora_linear.py: one
matmul forward, one for the input's gradient, and one per member that trains. Kept for the backward pass: the source
of x (a prologue makes x of it again), never x or the rounded W.

    dx = dy W        dW_i = dy_i^T x        db = sum over T of dy        and of a norm before it:  dw = sum dx * n

where n is the normalised source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorikeet.kernels.linear import backward as product_back
from lorikeet.kernels.linear import forward as product
from lorikeet.kernels.linear import serves as tiles_serve
from lorikeet.ops.lora_linear import Prologue
from lorikeet.ops.norm import Normed
from lorikeet.ops.weight_gradient import weight_gradient
from lorikeet.quant._contract import FrozenWeight


def reference_trained_linear(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """The definition. x [T, in], weights of the members [out_i, in] -> [T, sum of out_i]."""
    y = x @ torch.cat([weight.to(x.dtype) for weight in weights]).T
    return y if bias is None else y + bias.to(x.dtype)


class TrainedLinearFunction(torch.autograd.Function):
    """Arguments: the source, its prologue or None, the weight of the whole group, a bias [out] or None, the weight of
    the prologue's norm where it trains, the rows of the members that train, and their parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        prologue: Prologue | None,
        weight: FrozenWeight,
        bias: Tensor | None,
        norm: Tensor | None,
        rows: Sequence[slice],
        *members: Tensor,
    ) -> Tensor:
        x, kept = (source, None) if prologue is None else prologue.forward(source)
        dense = weight.dense(x.dtype)
        ctx.tiles = tiles_serve(x, weight.out_features, weight.in_features)
        y = product(x, dense) if ctx.tiles else x @ dense.T
        if bias is not None:
            y.add_(bias.to(y.dtype))
        ctx.prologue, ctx.weight, ctx.rows = prologue, weight, rows
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.members = members
        ctx.save_for_backward(source, kept)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0].contiguous()
        source, kept = ctx.saved_tensors
        wants_source, wants_norm = ctx.needs_input_grad[0], ctx.needs_input_grad[4]
        dbias = dy.sum(0, dtype=ctx.bias_dtype) if ctx.needs_input_grad[3] else None
        dx, x, dnorm, prologue = None, source, None, ctx.prologue
        if wants_source or wants_norm:
            dense = ctx.weight.dense(dy.dtype)
            dx = product_back(dy, dense) if ctx.tiles else dy @ dense
            del dense
        if prologue is not None and dx is not None:
            if wants_norm:
                dnorm = prologue.weight_gradient(source, kept, dx)
            dx, x = prologue.backward(source, kept, dx, again=True)
        elif prologue is not None:
            x, _ = prologue.forward(source)
        # each its own tensor: it is then taken over as the parameter's gradient, and freed alone
        dweights = [
            weight_gradient(member, dy[:, rows], x) if wanted else None
            for rows, member, wanted in zip(ctx.rows, ctx.members, ctx.needs_input_grad[6:])
        ]
        return dx if wants_source else None, None, None, dbias, dnorm, None, *dweights


def trained_linear(
    x: Tensor,
    weight: FrozenWeight,
    rows: Sequence[slice],
    members: Sequence[Tensor],
    bias: Tensor | None = None,
    prologue: Prologue | None = None,
) -> Tensor:
    """x [T, in], or what the prologue makes of it, -> [T, out]. `weight` is the whole group's, `members` those
    parameters [rows, in] of it that train; a norm whose weight trains may be the prologue."""
    norm = prologue.weight if isinstance(prologue, Normed) and prologue.weight.requires_grad else None
    return TrainedLinearFunction.apply(x, prologue, weight, bias, norm, rows, *members)
