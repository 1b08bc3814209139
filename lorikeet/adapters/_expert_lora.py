"""LoRA on experts: for each of an expert's linears A [R, in] and B [out, R], those of all experts in one tensor.

One A [E, R, in] and one B [E, out, R] per layer and linear keep the number of trained tensors (and the optimizer's
work) that of a dense model. On disk each expert has its own, named as its linear: PEFT, vLLM and llama.cpp read that.
PEFT with transformers 5 itself writes another layout, stacked with gate and up in one; `unstacked` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorikeet.adapters._targets import PREFIX
from lorikeet.base.errors import RecipeError
from lorikeet.base.rng import torch_rng
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.experts import ExpertGroup
from lorikeet.ops.lora_linear import LowRank

if TYPE_CHECKING:
    from lorikeet.adapters._low_rank import LowRankAdapter


class LoraStack(nn.Module):
    """A and B of one linear of every expert."""

    def __init__(self, group: ExpertGroup, leaf: str, rank: int, factor: float, dtype: torch.dtype, seed: int):
        super().__init__()
        first = group.of_leaf(leaf)[0]
        self.low_rank = LowRank(first.rows, factor)
        bound = 1 / math.sqrt(first.in_features)
        a = torch.empty(group.count, rank, first.in_features, dtype=dtype)
        a.uniform_(-bound, bound, generator=torch_rng(seed, "lora_A", f"{group.owner}.{leaf}"))
        self.a = nn.Parameter(a.to(first.device))
        self.b = nn.Parameter(torch.zeros(group.count, first.out_features, rank, dtype=dtype, device=first.device))


class ExpertPair(nn.Module):
    """A and B of one expert's linear: its part of a stack."""

    def __init__(self, stack: LoraStack, expert: int):
        super().__init__()
        self._stack, self.expert = [stack], expert  # in a list: the group owns the stack

    @property
    def a(self) -> Tensor:
        return self._stack[0].a[self.expert]

    @property
    def b(self) -> Tensor:
        return self._stack[0].b[self.expert]


class LoraExperts(nn.Module):
    """The updates of a group of experts; see `models.experts.ExpertUpdates`."""

    def __init__(self, stacks: Mapping[str, LoraStack], dropout: float):
        super().__init__()
        self.stacks, self.dropout = nn.ModuleDict(stacks), dropout
        self.members = tuple(stack.low_rank for stack in stacks.values())

    def of_leaf(self) -> dict[str, LoraStack]:
        """By linear, in the order of the members."""
        return {leaf: stack for leaf, stack in self.stacks.items() if isinstance(stack, LoraStack)}

    def factors(self) -> tuple[Tensor, ...]:
        """See `ExpertUpdates.factors`."""
        return tuple(factor for stack in self.of_leaf().values() for factor in (stack.a, stack.b))


def attach(group: ExpertGroup, names: set[str], options: LowRankAdapter, *, dtype: torch.dtype, seed: int) -> None:
    """Give every expert its A and B on the linears in `names`. Raises RecipeError where some experts are left out, or
    differ in rank or factor."""
    stacks = {}
    for leaf in group.leaves:
        linears = group.of_leaf(leaf)
        chosen = [linear for linear in linears if linear.name in names]
        if not chosen:
            continue
        if len(chosen) < len(linears):
            raise RecipeError(
                f"adapter.target_modules: the experts of a layer train together, and {len(linears) - len(chosen)} of "
                f"{len(linears)} are left out",
                given=chosen[0].name,
                allowed="all experts of a layer, or none",
                try_=f"adapter.target_modules='[{leaf}]'",
            )
        settings = {(options.rank_of(linear.name), options.factor_of(linear.name)) for linear in linears}
        if len(settings) > 1:
            raise RecipeError(
                "adapter.rank_pattern, adapter.alpha_pattern: the experts of a layer have one rank and one factor",
                given=f"{len(settings)} of them for {group.owner}.*.{leaf}",
                allowed="the same for all experts of a layer",
                try_=f"the name {leaf} in the pattern",
            )
        stacks[leaf] = LoraStack(group, leaf, *settings.pop(), dtype, seed)
        for expert, linear in enumerate(linears):
            linear.adapter = ExpertPair(stacks[leaf], expert)
    if stacks:
        group.updates = LoraExperts(stacks, options.lora_dropout)


def stacks(model: CausalLM) -> dict[str, LoraStack]:
    """Every stack, under the name of its experts and linear: `model.layers.0.mlp.experts.up_proj`."""
    return {
        f"{group.owner}.{leaf}": stack
        for group in model.groups()
        if isinstance(group, ExpertGroup) and isinstance(group.updates, LoraExperts)
        for leaf, stack in group.updates.of_leaf().items()
    }


def one_by_one(name: str, factor: Tensor) -> dict[str, Tensor]:
    """A stack's tensor as it lies on disk: views of each expert's part, `name` being that of the whole stack."""
    head, leaf, *tail = name.rsplit(".", 3)  # ....experts, up_proj, lora_A, weight
    return {".".join((head, str(expert), leaf, *tail)): part for expert, part in enumerate(factor)}


def unstacked(model: CausalLM, tensors: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """An adapter that PEFT has written with transformers 5, under the names and in the shapes of `one_by_one`.

    Its A is [E r, in] and its B [out, r E] (experts innermost), for gate and up together and for down; where both are
    there, the first lies under `base_layer`. Tensors of a smaller rank are filled up with zeros, which change nothing.
    """
    if not any(".experts.lora_" in name or ".experts.base_layer.lora_" in name for name in tensors):
        return tensors
    left, owners = dict(tensors), {}
    found: dict[str, Tensor] = {}
    for group in model.groups():
        if not isinstance(group, ExpertGroup):
            continue
        holder = PREFIX + group.stacked.rsplit(".", 1)[0]
        owners[holder.removesuffix("experts")] = PREFIX + group.owner.removesuffix("experts")
        for place in (f"{holder}.base_layer", holder):
            names = [f"{place}.lora_A.weight", f"{place}.lora_B.weight"]
            if all(name in left for name in names) and _fits(group, *(left[name] for name in names)):
                a, b = (left.pop(name) for name in names)
                found |= _of_each(group, a.view(group.count, -1, a.shape[1]), b)
                break
    for there, here in owners.items():  # the router lies beside the experts
        left = {name.replace(there, here): value for name, value in left.items()}
    return {name: _filled_up(name, value, rank) for name, value in (left | found).items()}


def settings_of_stacked(config: dict[str, Any]) -> dict[str, Any]:
    """The options r, scaling and target_modules that say what PEFT's `target_parameters` do, with the ranks and
    alphas it gives gate and up, being one to it. Raises RecipeError for patterns that say more than that."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    modules, parameters = config.get("target_modules") or [], config.get("target_parameters") or []
    rank, alpha, joined = config["r"], config["lora_alpha"], r".*\.gate_up_proj"
    factors = []
    for r, a in ((rank, alpha), (ranks.get(joined, rank), alphas.get(joined, alpha))):
        factors.append(a / (math.sqrt(r) if config.get("use_rslora") else r))
    if (ranks.keys() | alphas.keys()) - {joined} or not math.isclose(*factors) or isinstance(modules, str):
        raise RecipeError(
            "this adapter gives its linears ranks or factors that differ, which is not supported",
            given=f"rank_pattern {ranks}, alpha_pattern {alphas}, use_rslora {config.get('use_rslora')}",
            allowed="plain LoRA; for experts also twice r and lora_alpha on gate_up_proj",
        )
    experts = [name for name in parameters if not name.endswith("gate.weight")]
    words = [name if name.rpartition(".")[0].endswith("experts") else f"experts.{name}" for name in experts]
    routers = [name.removesuffix(".weight") for name in parameters if name.endswith("gate.weight")]
    return {
        "r": max(rank, ranks.get(joined, rank)),
        "scaling": factors[0],
        "target_modules": [*modules, *words, *routers],
    }


def _of_each(group: ExpertGroup, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    b = b.view(len(b), -1, group.count).permute(2, 0, 1)  # [E, out, r]
    for leaf, part in zip(group.leaves, b.chunk(len(group.leaves), 1)):
        found |= one_by_one(f"{PREFIX}{group.owner}.{leaf}.lora_A.weight", a)
        found |= one_by_one(f"{PREFIX}{group.owner}.{leaf}.lora_B.weight", part)
    return found


def _fits(group: ExpertGroup, a: Tensor, b: Tensor) -> bool:
    """Whether the pair is this group's: gate and up read what down writes."""
    out = group.of_leaf(group.leaves[0])[0].out_features * len(group.leaves)
    return a.shape[1] == group.weight.in_features and len(b) == out and len(a) % group.count == 0


def _filled_up(name: str, value: Tensor, rank: int) -> Tensor:
    if name.endswith(".lora_A.weight") and len(value) < rank:
        return F.pad(value, (0, 0, 0, rank - len(value)))
    if name.endswith(".lora_B.weight") and value.shape[1] < rank:
        return F.pad(value, (0, rank - value.shape[1]))
    return value
