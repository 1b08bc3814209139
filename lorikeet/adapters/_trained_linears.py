"""Linears of the base whose weights train, alone or beside what an adapter does to others of their group.

Their arithmetic is ops/trained_linear.py's. A group in which all train has no other storage; where some stay frozen,
theirs is kept as it was. A weight that was kept quantised begins as the numbers it stood for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lorikeet.base.errors import RecipeError
from lorikeet.models.linear import FrozenLinear, LinearGroup
from lorikeet.models.stored import MAKES_DENSE
from lorikeet.ops.lora_linear import Prologue
from lorikeet.ops.trained_linear import trained_linear
from lorikeet.quant._contract import FrozenWeight
from lorikeet.quant.none import DenseWeight


def master(dtype: torch.dtype) -> torch.dtype:
    """Trained tensors are float32, or wider where the model is."""
    return torch.promote_types(dtype, torch.float32)


class TrainedPart(nn.Module):
    """What a linear that trains keeps: its weight [out, in], in float32 or wider."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)


class TrainedWeight(FrozenWeight):
    """The weight of a group of linears of which some train. `frozen` is the storage it had, while others need it."""

    def __init__(self, linears: Sequence[FrozenLinear], in_features: int, frozen: FrozenWeight | None):
        super().__init__()
        self.out_features, self.in_features = sum(linear.out_features for linear in linears), in_features
        found = list(zip(side_by_side(linears), (linear.adapter for linear in linears)))
        self.parts = nn.ModuleList(part for _, part in found if isinstance(part, TrainedPart))
        self.members = [rows for rows, part in found if isinstance(part, TrainedPart)]
        self.others = [rows for rows, part in found if not isinstance(part, TrainedPart)]
        self.frozen = frozen

    def weights(self) -> list[nn.Parameter]:
        """Of the members that train."""
        return [part.weight for part in self.parts if isinstance(part, TrainedPart)]

    @torch.no_grad()
    def dense(self, dtype: torch.dtype) -> Tensor:
        weights = self.weights()
        if len(weights) == 1 and not self.others:
            return weights[0].detach().to(dtype)
        made = torch.empty(self.out_features, self.in_features, dtype=dtype, device=weights[0].device)
        for rows, weight in zip(self.members, weights):
            made[rows].copy_(weight)
        for rows in self.others:
            assert self.frozen is not None
            made[rows].copy_(self.frozen.rows(rows.start, rows.stop, dtype))
        return made

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        for rows, weight in zip(self.members, self.weights()):
            if (rows.start, rows.stop) == (start, stop):
                return weight.detach().to(dtype)
        return self.dense(dtype)[start:stop]


class TrainedGroup(nn.Module):
    """Computes a group of linears of which some train."""

    trains_norms = True  # a norm before the group may leave its weight's gradient to us

    def __init__(self, group: LinearGroup, weight: TrainedWeight):
        super().__init__()
        self._group, self._weight = [group], [weight]  # in lists: the group owns them

    def forward(self, x: Tensor, prologue: Prologue | None = None) -> Tensor:
        """x, or what the prologue makes of it, [T, in] -> [T, sum of the members' out]."""
        (group,), (weight,) = self._group, self._weight
        return trained_linear(x, weight, weight.members, weight.weights(), group.bias(), prologue)


class Beside(nn.Module):
    """Computes a group in which some linears train and an adapter is on others: both, each for its rows."""

    def __init__(self, group: LinearGroup, others: Callable[[Tensor, Prologue | None], Tensor]):
        super().__init__()
        self._group, self._others = [group], [others]  # in lists: the group owns it, and `others` may be no module
        if isinstance(others, nn.Module):
            self.others = others
        trained = [linear for linear in group.linears if isinstance(linear.adapter, TrainedPart)]
        self._trained = [trained]
        self._weight = [TrainedWeight(trained, group.weight.in_features, None)]

    def forward(self, x: Tensor, prologue: Prologue | None = None) -> Tensor:
        """x, or what the prologue makes of it, [T, in] -> [T, sum of the members' out]."""
        (group,), (trained,), (weight,) = self._group, self._trained, self._weight
        biases = [linear.bias for linear in trained]
        bias = None
        if any(one is not None for one in biases):
            sizes = [linear.out_features for linear in trained]
            bias = torch.cat([x.new_zeros(n) if one is None else one.to(x.dtype) for one, n in zip(biases, sizes)])
        y = self._others[0](x, prologue)  # of the rows that train too: a few columns more of one matmul
        mine = trained_linear(x, weight, weight.members, weight.weights(), bias, prologue)
        places = {linear.rows.start: rows for linear, rows in zip(trained, weight.members)}
        return torch.cat(
            [
                mine[:, places[linear.rows.start]] if linear.rows.start in places else y[:, linear.rows]
                for linear in group.linears
            ],
            dim=1,
        )


def side_by_side(linears: Sequence[FrozenLinear]) -> list[slice]:
    """Their rows where they alone stand below each other."""
    rows, start = [], 0
    for linear in linears:
        rows.append(slice(start, start + linear.out_features))
        start = rows[-1].stop
    return rows


def release(group: LinearGroup, chosen: Sequence[FrozenLinear], dtype: torch.dtype, *, quantised: bool) -> None:
    """Let members of a group train. Raises RecipeError for quantised ones unless they may."""
    if not chosen:
        return
    if not quantised:
        refuse_quantised(group, chosen)
    for linear in chosen:
        # a copy also where the dtype is right: the group's storage is let go
        linear.adapter = TrainedPart(linear.dense(dtype).detach().to(master(dtype), copy=True))
    frozen = None if len(chosen) == len(group.linears) else group.weight
    others = group.attached
    weight = TrainedWeight(group.linears, group.weight.in_features, frozen)
    group.weight = weight
    for linear in group.linears:
        linear.keep_in(weight)
    group.attached = TrainedGroup(group, weight) if others is None else Beside(group, others)


def refuse_quantised(group: LinearGroup, chosen: Sequence[FrozenLinear]) -> None:
    """Raise RecipeError where the group's weight is not kept dense."""
    if not isinstance(group.weight, DenseWeight):
        raise RecipeError(
            "adapter.target_modules: quantised weights do not train",
            given=f"{chosen[0].name} and {len(chosen) - 1} more of its group",
            allowed="tensors that stay dense: embeddings, norms, and linears that quant.target_modules leaves out",
            try_=f"quant=none; of a model that is stored quantised, {MAKES_DENSE}",
        )
