"""The linears of a model while it answers: without a gradient, much can be done once in place of in each pass.

An adapter's factors are brought to the model's dtype and laid side by side once, scaled; no autograd function keeps
anything. Where a pass computes some sixty rows, as many thin products and casts would take a third of its time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lorikeet.adapters.lora import LoraGroup, LoraPair
from lorikeet.kernels import few_rows
from lorikeet.kernels import linear as tiles
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.linear import LinearGroup
from lorikeet.ops.lora_linear import LowRank, Prologue
from lorikeet.quant._contract import FrozenWeight


class AnsweringGroup:
    """A group of linears as it stands: the frozen weight, biases, and the members' low-rank updates."""

    def __init__(self, group: LinearGroup, dtype: torch.dtype):
        self.weight = group.weight
        self.plain = type(group.weight).linear is FrozenWeight.linear  # its product is one with the dense weight
        bias = group.bias()
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.a: Tensor | None = None
        self.b: Tensor | None = None
        if isinstance(group.attached, LoraGroup):
            pairs = [(linear.rows, linear.adapter) for linear in group.linears]
            found = [(rows, pair) for rows, pair in pairs if isinstance(pair, LoraPair)]
            members = [LowRank(rows, pair.factor) for rows, pair in found]
            factors = [factor for _, pair in found for factor in pair.factors()]
            self.a, self.b = side_by_side(members, factors, group.weight.out_features, dtype)

    def __call__(self, source: Tensor, prologue: Prologue | None = None) -> Tensor:
        """The source [T, in], or what the prologue makes of it -> [T, sum of the members' out]."""
        x = source if prologue is None else prologue.forward(source)[0]
        y = self._product(x)
        return y if self.bias is None else y.add_(self.bias)

    def _product(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.plain:
            dense = weight.dense(x.dtype)
            if few_rows.serves(x, dense):
                z = None if self.a is None else few_rows.forward(x, self.a)
                return few_rows.forward(x, dense, z, self.b)
            on_tiles = tiles.serves(x, weight.out_features, weight.in_features)
            y = tiles.forward(x, dense) if on_tiles else x @ dense.T
        else:
            y = weight.linear(x)
        if self.a is not None and self.b is not None:
            y.addmm_(x @ self.a.T, self.b.T)
        return y


def side_by_side(
    members: list[LowRank], factors: list[Tensor], width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """A's below each other [S, in], and B's times their scaling at their rows and columns [width, S], zeros between.
    S is a multiple of what the kernels take."""
    ranks = [a.shape[0] for a in factors[::2]]
    total = sum(ranks) + -sum(ranks) % tiles.MULTIPLE
    a_all = factors[0].new_zeros(total, factors[0].shape[1], dtype=dtype)
    b_all = factors[0].new_zeros(width, total, dtype=dtype)
    start = 0
    for member, a, b, rank in zip(members, factors[::2], factors[1::2], ranks):
        a_all[start : start + rank] = a
        b_all[member.rows, start : start + rank] = b * member.scaling
        start += rank
    return a_all, b_all


@contextmanager
def answering_linears(model: CausalLM) -> Iterator[None]:
    """Inside the block, groups of linears that are plain or have LoRA compute this way. Nothing may train meanwhile;
    inside another such block it changes nothing."""
    groups = [
        group
        for group in model.groups()
        if type(group) is LinearGroup
        and group.answering is None
        and (group.attached is None or isinstance(group.attached, LoraGroup))
    ]
    with torch.no_grad():
        for group in groups:
            group.answering = AnsweringGroup(group, model.dtype)
    try:
        yield
    finally:
        for group in groups:
            group.answering = None
