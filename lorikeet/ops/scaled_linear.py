"""Vectors beside a frozen linear: y = l * (x W^T + b), or y = (l * x) W^T + b  (Liu et al. 2022, IA3).

A vector is given as its gain g = l - 1, so that y = u + g u: rounded to the activations' 16 bits, l itself could not
tell 1 from 1.001. W is asked for in each pass and never kept. Gradients:

    outputs:  du = dy + g dy            dg = sum over T of dy u
    inputs:   dx = d + g d, d = dy W    dg = sum over T of d x
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorikeet.ops.lora_linear import Prologue
from lorikeet.quant._contract import FrozenWeight


def reference_scale_outputs(u: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    """The definition. u [T, out], gain [out], bias [out] -> (1 + gain) u + bias [T, out]."""
    y = u * (1 + gain)
    return y if bias is None else y + bias


def reference_scaled_input_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, rows: Sequence[slice], gains: Sequence[Tensor]
) -> Tensor:
    """The definition. x [T, in], weight [out, in]; the outputs `rows` of each gain [in] read (1 + gain) x."""
    y = x @ weight.T
    parts = list(y.split(1, dim=1))
    for place, gain in zip(rows, gains):
        parts[place] = list(((x * (1 + gain)) @ weight[place].T).split(1, dim=1))
    y = torch.cat(parts, dim=1)
    return y if bias is None else y + bias


class ScaleOutputs(torch.autograd.Function):
    """Arguments: u [T, out], gain [out], bias [out] or None."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(u, gain, bias)
        y = _scaled(u, gain)
        return y if bias is None else y.add_(bias.to(y.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        u, gain, bias = ctx.saved_tensors
        du = _scaled(dy, gain) if ctx.needs_input_grad[0] else None
        dgain = _dots(dy, u, gain.dtype) if ctx.needs_input_grad[1] else None
        dbias = dy.sum(0, dtype=bias.dtype) if bias is not None and ctx.needs_input_grad[2] else None
        return du, dgain, dbias


class ScaledInputLinear(torch.autograd.Function):
    """Arguments: the source, its prologue or None, the frozen weight, a bias [out] or None, the rows, the gains."""

    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        prologue: Prologue | None,
        weight: FrozenWeight,
        bias: Tensor | None,
        rows: Sequence[slice],
        *gains: Tensor,
    ) -> Tensor:
        x, kept = (source, None) if prologue is None else prologue.forward(source)
        ctx.prologue, ctx.weight, ctx.parts = prologue, weight, _parts(rows, weight.out_features)
        ctx.save_for_backward(source, kept, *gains)
        if len(ctx.parts) == 1:
            y = weight.linear(_scaled(x, gains[0]))
        else:
            given = [(place, x if which is None else _scaled(x, gains[which])) for place, which in ctx.parts]
            y = torch.cat([part @ weight.rows(p.start, p.stop, x.dtype).T for p, part in given], dim=1)
        return y if bias is None else y.add_(bias.to(y.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), weight, prologue = grads, ctx.weight, ctx.prologue
        source, kept, *gains = ctx.saved_tensors
        x = source if prologue is None else prologue.forward(source)[0]
        dx, dgains = None, [torch.zeros_like(gain) for gain in gains]
        for place, which in ctx.parts:
            whole = len(ctx.parts) == 1
            part = dy[:, place]
            d = weight.backward(part) if whole else part @ weight.rows(place.start, place.stop, dy.dtype)
            if which is not None:
                dgains[which] = _dots(d, x, gains[which].dtype)
                d = _scaled(d, gains[which])
            dx = d if dx is None else dx.add_(d)
        assert dx is not None
        dsource = dx if prologue is None else prologue.backward(source, kept, dx)[0]
        return dsource, None, None, None, None, *dgains


def _parts(rows: Sequence[slice], out: int) -> list[tuple[slice, int | None]]:
    """All rows in turn: those of each gain with its number, and what lies between with None."""
    found: list[tuple[slice, int | None]] = []
    end = 0
    for which, place in sorted(enumerate(rows), key=lambda one: one[1].start):
        if place.start > end:
            found.append((slice(end, place.start), None))
        found.append((place, which))
        end = place.stop
    return [*found, (slice(end, out), None)] if end < out else found


def _scaled(x: Tensor, gain: Tensor) -> Tensor:
    return torch.addcmul(x, x, gain.to(x.dtype))


def _dots(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Of each column of two [T, n], in `dtype` [n]."""
    return (left * right).sum(0, dtype=dtype)


def scale_outputs(u: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    """u [T, out], gain [out] in float32 or wider, bias [out] -> u + gain u + bias [T, out]."""
    return ScaleOutputs.apply(u, gain, bias)


def scaled_input_linear(
    x: Tensor,
    weight: FrozenWeight,
    bias: Tensor | None,
    rows: Sequence[slice],
    gains: Sequence[Tensor],
    prologue: Prologue | None = None,
) -> Tensor:
    """x [T, in], or what the prologue makes of it -> [T, out]: outputs `rows` of each gain [in] read x + gain x. The
    bias does not train."""
    return ScaledInputLinear.apply(x, prologue, weight, bias, rows, *gains)
