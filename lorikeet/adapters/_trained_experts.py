"""Experts whose weights train: for each of an expert's linears, those of all experts are one parameter [E, out, in].

So the number of trained tensors, and the optimizer's work, is that of a dense model; an expert that no token of a step
chose has a gradient of zero. On disk each expert's weight has its own name. The arithmetic is in ops/experts.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lorikeet.adapters._trained_linears import master, refuse_quantised
from lorikeet.base.errors import RecipeError
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.experts import ExpertGroup
from lorikeet.models.linear import FrozenLinear
from lorikeet.quant._contract import FrozenWeight


class TrainedStack(nn.Module):
    """The weights [E, out, in] of one linear of every expert, in float32 or wider."""

    def __init__(self, linears: Sequence[FrozenLinear], dtype: torch.dtype):
        super().__init__()
        first = linears[0]
        shape = (len(linears), first.out_features, first.in_features)
        weight = torch.empty(shape, dtype=master(dtype), device=first.device)
        for expert, linear in enumerate(linears):
            weight[expert].copy_(linear.dense(dtype))
        self.weight, self.rows = nn.Parameter(weight), first.rows


class ExpertPart(nn.Module):
    """The weight of one expert's linear: its part of a stack."""

    def __init__(self, stack: TrainedStack, expert: int):
        super().__init__()
        self._stack, self.expert = [stack], expert  # in a list: the group owns the stack

    @property
    def weight(self) -> Tensor:
        return self._stack[0].weight[self.expert]


class TrainedExperts(FrozenWeight):
    """The weight of a group of experts of which some linears train; see `models.experts.TrainedRows`. `frozen` is the
    storage it had, while others need it."""

    def __init__(self, group: ExpertGroup, stacks: Mapping[str, TrainedStack]):
        super().__init__()
        self.out_features, self.in_features = group.weight.out_features, group.weight.in_features
        self.stacks, self._size = nn.ModuleDict(stacks), self.out_features // group.count
        self.frozen = None if len(stacks) == len(group.leaves) else group.weight

    def of_leaf(self) -> dict[str, TrainedStack]:
        """By linear."""
        return {leaf: stack for leaf, stack in self.stacks.items() if isinstance(stack, TrainedStack)}

    def trained_rows(self) -> tuple[slice, ...]:
        """Which rows of one expert train."""
        return tuple(stack.rows for stack in self.of_leaf().values())

    def trained_weights(self) -> tuple[Tensor, ...]:
        """[E, rows, in] of each in turn."""
        return tuple(stack.weight for stack in self.of_leaf().values())

    @torch.no_grad()
    def dense(self, dtype: torch.dtype) -> Tensor:
        return self.rows(0, self.out_features, dtype)

    @torch.no_grad()
    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Whole linears, of one expert or several."""
        parts, at, size = [], start, self._size
        while at < stop:
            expert, inside = divmod(at, size)
            stack = next((one for one in self.of_leaf().values() if one.rows.start == inside), None)
            if stack is not None:
                parts.append(stack.weight[expert].to(dtype))
            else:
                assert self.frozen is not None
                later = [one.rows.start for one in self.of_leaf().values() if one.rows.start > inside]
                parts.append(self.frozen.rows(at, min(stop, expert * size + min([*later, size])), dtype))
            at += len(parts[-1])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def release(group: ExpertGroup, chosen: Sequence[FrozenLinear], dtype: torch.dtype) -> None:
    """Let linears of all experts of a group train. Raises RecipeError where some experts are left out, and for
    quantised ones."""
    if not chosen:
        return
    refuse_quantised(group, chosen)
    names, stacks = {linear.name for linear in chosen}, {}
    for leaf in group.leaves:
        linears = group.of_leaf(leaf)
        left_out = [linear.name for linear in linears if linear.name not in names]
        if len(left_out) == len(linears):
            continue
        if left_out:
            raise RecipeError(
                f"adapter.target_modules: the experts of a layer train together, and {len(left_out)} of {len(linears)} "
                "are left out",
                given=left_out[0],
                allowed="all experts of a layer, or none",
                try_="adapter.target_modules='[experts]'",
            )
        stacks[leaf] = TrainedStack(linears, dtype)
        for expert, linear in enumerate(linears):
            linear.adapter = ExpertPart(stacks[leaf], expert)
    weight = TrainedExperts(group, stacks)
    group.weight = weight
    for linear in group.linears:
        linear.keep_in(weight)


def stacks(model: CausalLM) -> dict[str, nn.Parameter]:
    """Every stack that trains: `model.layers.0.mlp.experts.up_proj.weight`."""
    return {
        f"{group.owner}.{leaf}.weight": stack.weight
        for group in model.groups()
        if isinstance(group, ExpertGroup) and isinstance(group.weight, TrainedExperts)
        for leaf, stack in group.weight.of_leaf().items()
    }


def one_by_one(name: str, stack: Tensor) -> dict[str, Tensor]:
    """A stack's tensor under the checkpoint's names: views of each expert's part."""
    owner, leaf, end = name.rsplit(".", 2)
    return {f"{owner}.{expert}.{leaf}.{end}": part for expert, part in enumerate(stack)}
