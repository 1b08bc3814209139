"""The linears of a model while it answers: without a gradient, much can be done once in place of in each pass.

An adapter's factors are brought to the model's dtype and laid side by side once, scaled; no autograd function keeps
anything. Where a pass computes some sixty rows, as many thin products and casts would take a third of its time.

Rows of one pass may have adapters of their own, by name. The product with the frozen weight is one for all of them. Of
few rows, each then meets the factors of all adapters in the pass, and what is not its own becomes zero: two more thin
products, however many there are (Chen et al. 2023, Punica, and S-LoRA gather them; here so few numbers are faster).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor

from lorikeet.adapters.lora import LoraGroup, LoraPair
from lorikeet.infer.dense_copies import is_kept, is_plain
from lorikeet.kernels import few_rows
from lorikeet.kernels import linear as tiles
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.linear import LinearGroup
from lorikeet.ops.lora_linear import LowRank, Prologue
from lorikeet.quant._contract import FrozenWeight

OWN = None  # the adapter that the model was opened with, if it has one
BASE = "base"  # the name of none
Factors = tuple[Tensor, Tensor]  # A [S, in], and B [width, S] times its factor
Part = tuple["str | None", int]  # an adapter, and how many rows it has
MOST_BESIDE = 8  # combinations of adapters whose factors are kept beside each other
Update = tuple[Tensor, Tensor, float]  # A [R, in] and B [out, R] of one linear, and their factor


class AnsweringGroup:
    """A group of linears as it stands: the frozen weight, biases, and the members' low-rank updates."""

    def __init__(self, group: LinearGroup, dtype: torch.dtype, of: Answering):
        self.weight, self.dtype, self.of = group.weight, dtype, of
        self.plain = type(group.weight).linear is FrozenWeight.linear  # its product is one with the dense weight
        bias = group.bias()
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.rows = {linear.name: linear.rows for linear in group.linears}
        self.factors: dict[str | None, Factors] = {}
        if isinstance(group.attached, LoraGroup):
            pairs = {linear.name: linear.adapter for linear in group.linears}
            found = {name: pair for name, pair in pairs.items() if isinstance(pair, LoraPair)}
            self.load(OWN, {name: (*pair.factors(), pair.factor) for name, pair in found.items()})
        self._beside: dict[tuple[str | None, ...], Factors] = {}

    def load(self, adapter: str | None, updates: Mapping[str, Update]) -> None:
        """Have the updates of an adapter, by linear."""
        mine = [(rows, updates[name]) for name, rows in self.rows.items() if name in updates]
        if mine:
            members = [LowRank(rows, scaling) for rows, (_, _, scaling) in mine]
            factors = [factor for _, (a, b, _) in mine for factor in (a, b)]
            self.factors[adapter] = side_by_side(members, factors, self.weight.out_features, self.dtype, self._device)

    def unload(self, adapter: str) -> None:
        """Forget an adapter."""
        self.factors.pop(adapter, None)
        self._beside.clear()

    @property
    def _device(self) -> torch.device:
        return next(self.weight.parameters()).device

    def __call__(self, source: Tensor, prologue: Prologue | None = None) -> Tensor:
        """The source [T, in], or what the prologue makes of it -> [T, sum of the members' out]."""
        x = source if prologue is None else prologue.forward(source)[0]
        y = self._product(x)
        return y if self.bias is None else y.add_(self.bias)

    def _product(self, x: Tensor) -> Tensor:
        weight, mixed = self.weight, len(self.of.now) > 1
        one = None if mixed else self.factors.get(self.of.now[0][0])
        if self._from_stored(x):
            return weight.few_rows(x, *(self._low(x, one) if not mixed else self._mixed_low(x)))
        if self.plain:
            dense = weight.dense(x.dtype)
            if few_rows.serves(x, dense):
                z, b = self._low(x, one) if not mixed else self._mixed_low(x)
                return few_rows.forward(x, dense, z, b)
            on_tiles = tiles.serves(x, weight.out_features, weight.in_features)
            if on_tiles and one is not None:
                return tiles.updated(x, dense, *one)
            y = tiles.forward(x, dense) if on_tiles else x @ dense.T
        else:
            y = weight.linear(x)
        if one is not None:
            y.addmm_(x @ one[0].T, one[1].T)
        elif mixed:
            self._add_each(x, y)
        return y

    def _from_stored(self, x: Tensor) -> bool:
        """Whether a quantised weight multiplies these rows as it is kept."""
        weight = self.weight
        return (
            self.plain
            and weight.has_few_rows()
            and not is_kept(weight)
            and few_rows.serves_sizes(x, weight.out_features, weight.in_features)
        )

    def _low(self, x: Tensor, one: Factors | None) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if one is None else (few_rows.forward(x, one[0]), one[1])

    def _mixed_low(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """z [T, all S], zero but for each row's own adapter, and the B's beside each other."""
        present = tuple(adapter for adapter in dict.fromkeys(name for name, _ in self.of.now)
                        if adapter in self.factors)  # fmt: skip
        if not present:
            return None, None
        if present not in self._beside:
            if len(self._beside) >= MOST_BESIDE:
                self._beside.clear()
            chosen = [self.factors[adapter] for adapter in present]
            self._beside[present] = torch.cat([a for a, _ in chosen]), torch.cat([b for _, b in chosen], 1)
        a, b = self._beside[present]
        widths = tuple(len(self.factors[adapter][0]) for adapter in present)
        return few_rows.forward(x, a).mul_(self.of.mask(len(x), present, widths, x)), b

    def _add_each(self, x: Tensor, y: Tensor) -> None:
        for (adapter, count), stop in zip(self.of.now, self.of.stops):
            found = self.factors.get(adapter)
            if found is not None:
                rows = slice(stop - count, stop)
                y[rows].addmm_(x[rows] @ found[0].T, found[1].T)


class Answering:
    """All groups of a model that answers, the adapters that requests may name, and whose rows a pass computes."""

    def __init__(self, groups: Sequence[LinearGroup], dtype: torch.dtype):
        self.adapters: list[str] = []
        self.serve([(OWN, 0)])
        self.groups = [AnsweringGroup(group, dtype, self) for group in groups]

    def load(self, adapter: str, updates: Mapping[str, Update]) -> None:
        """Have an adapter under a name that is free."""
        assert adapter not in self.adapters
        for group in self.groups:
            group.load(adapter, updates)
        self.adapters.append(adapter)

    def unload(self, adapter: str) -> None:
        """Forget an adapter."""
        for group in self.groups:
            group.unload(adapter)
        self.adapters.remove(adapter)

    def serve(self, parts: Sequence[Part]) -> None:
        """From now on passes have so many rows of each adapter, in this order. A single one has all rows."""
        self.now = list(parts)
        self.stops = list(accumulate(count for _, count in parts))
        self._masks: dict[tuple[object, ...], Tensor] = {}

    def mask(self, rows: int, present: tuple[str | None, ...], widths: tuple[int, ...], like: Tensor) -> Tensor:
        """[rows, sum of widths]: 1 where a row meets its own adapter of those that are `present`."""
        key = (rows, present, widths)
        if key not in self._masks:
            mask = like.new_zeros(rows, sum(widths))
            columns = dict(zip(present, zip(accumulate(widths), widths)))
            for (adapter, count), stop in zip(self.now, self.stops):
                if adapter in columns:
                    end, width = columns[adapter]
                    mask[stop - count : stop, end - width : end] = 1
            self._masks[key] = mask
        return self._masks[key]


def side_by_side(
    members: list[LowRank],
    factors: list[Tensor],
    width: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> Factors:
    """A's below each other [S, in], and B's times their scaling at their rows and columns [width, S], zeros between.
    S is a multiple of what the kernels take."""
    ranks = [a.shape[0] for a in factors[::2]]
    total = sum(ranks) + -sum(ranks) % tiles.MULTIPLE
    device = device or factors[0].device
    a_all = torch.zeros(total, factors[0].shape[1], dtype=dtype, device=device)
    b_all = torch.zeros(width, total, dtype=dtype, device=device)
    start = 0
    for member, a, b, rank in zip(members, factors[::2], factors[1::2], ranks):
        a_all[start : start + rank] = a
        b_all[member.rows, start : start + rank] = b * member.scaling
        start += rank
    return a_all, b_all


@contextmanager
def answering_linears(model: CausalLM) -> Iterator[Answering]:
    """Inside the block, groups of linears that are plain or have LoRA compute this way. Nothing may train meanwhile;
    inside another such block it changes nothing and has that one's adapters."""
    everyone = list(model.groups())
    already = [group.answering for group in everyone if isinstance(group.answering, AnsweringGroup)]
    if already:
        yield already[0].of
        return
    groups = [group for group in everyone if is_plain(group)]
    with torch.no_grad():
        answering = Answering(groups, model.dtype)
    for group, computes in zip(groups, answering.groups):
        group.answering = computes
    try:
        yield answering
    finally:
        for group in groups:
            group.answering = None
