"""Tensors of the base that train themselves: each is kept in float32, and rounded to the model's dtype as it is used.

Linears go through ops/trained_linear.py. Whatever else a checkpoint holds (embeddings, norms, biases, a head) is
exchanged for a wider parameter in each module that owns it, so a tied embedding stays one tensor with one gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lorikeet.base.errors import RecipeError, nearest
from lorikeet.base.option_fields import as_yaml
from lorikeet.base.targets import means
from lorikeet.models.build import Embedding, MappedEmbedding, Norm
from lorikeet.models.causal_lm import CausalLM, Head
from lorikeet.models.experts import ExpertGroup
from lorikeet.models.linear import FrozenLinear, LinearGroup
from lorikeet.ops.lora_linear import Prologue
from lorikeet.ops.trained_linear import trained_linear
from lorikeet.quant._contract import FrozenWeight
from lorikeet.quant.none import DenseWeight


class TrainedPart(nn.Module):
    """What a linear that trains keeps: its weight [out, in], in float32 or wider."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)


class TrainedWeight(FrozenWeight):
    """The weight of a group of linears of which some train. `frozen` is the storage it had, while others need it."""

    def __init__(self, group: LinearGroup, frozen: FrozenWeight | None):
        super().__init__()
        self.out_features, self.in_features = group.weight.out_features, group.weight.in_features
        found = [(linear.rows, linear.adapter) for linear in group.linears]
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


def trainable(model: CausalLM) -> list[str]:
    """The checkpoint's names of all tensors that could train: floats that are parameters of the network."""
    weights = {f"{name}.weight" for name, _ in model.linears()}
    return [
        slot.name
        for slot in model.slots()
        if slot.name in weights
        or slot.write is None
        or (isinstance(slot.holds, nn.Parameter) and slot.holds.is_floating_point())
    ]


def named(option: str, words: str | Sequence[str], names: Sequence[str], *, everything: str = "all") -> set[str]:
    """Those tensors that are meant. A word is a part of a name between dots (up_proj, layers.3, norm); a text is a
    regex on the whole name, or one such word. Raises RecipeError for a word that means none."""
    if words in (everything, [everything]):
        return set(names)
    chosen: set[str] = set()
    for word in [words] if isinstance(words, str) else words:
        found = {name for name in names if f".{word}." in f".{name}."}
        if isinstance(words, str):
            found |= {name for name in names if means(option, word, name)}
        if not found:
            known = list(dict.fromkeys(part for name in names for part in name.split(".")[-2:-1]))
            near = nearest(word, known)
            raise RecipeError(
                f"{option}: the model has no tensor with '{word}' in its name",
                given=as_yaml(words),
                allowed=" ".join(known),
                try_=f"{option}='[{near}]'" if near else None,
            )
        chosen |= found
    return chosen


def release(model: CausalLM, names: Iterable[str]) -> None:
    """Let the tensors of these checkpoint names train. Raises RecipeError for linears whose storage cannot."""
    chosen, dtype = set(names), model.dtype
    for group in model.groups():
        _release_linears(group, [one for one in group.linears if f"{one.name}.weight" in chosen], dtype)
    _into_memory(model, chosen, dtype)
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, key))
    model.activations = dtype
    for slot in list(model.slots()):
        if slot.name in chosen and isinstance(slot.holds, nn.Parameter):
            wide = nn.Parameter(slot.holds.detach().to(master(dtype)), requires_grad=True)
            for module, key in owners[id(slot.holds)]:
                setattr(module, key, wide)
                _narrow(module, dtype)


def master(dtype: torch.dtype) -> torch.dtype:
    """Trained tensors are float32, or wider where the model is."""
    return torch.promote_types(dtype, torch.float32)


def released(model: CausalLM) -> dict[str, nn.Parameter]:
    """What `release` made trainable, by the checkpoint's names."""
    linears = dict(model.linears())
    found: dict[str, nn.Parameter] = {}
    for slot in model.slots():
        stem, _, suffix = slot.name.rpartition(".")
        linear = linears.get(stem)
        if linear is not None and suffix == "weight":
            if isinstance(linear.adapter, TrainedPart):
                found[slot.name] = linear.adapter.weight
        elif isinstance(slot.holds, nn.Parameter) and slot.holds.requires_grad:
            found[slot.name] = slot.holds
    return found


def _release_linears(group: LinearGroup, chosen: Sequence[FrozenLinear], dtype: torch.dtype) -> None:
    if not chosen:
        return
    if isinstance(group, ExpertGroup):
        raise RecipeError(
            "adapter.target_modules: the weights of experts do not train, only low-rank updates of them do",
            given=f"{chosen[0].name} and {len(chosen) - 1} more",
            allowed="the other tensors, or adapter.kind=lora",
            try_="adapter.exclude_modules='[experts]'",
        )
    if not isinstance(group.weight, DenseWeight):
        raise RecipeError(
            "adapter.target_modules: quantised weights do not train",
            given=f"{chosen[0].name} and {len(chosen) - 1} more of its group",
            allowed="tensors that stay dense: embeddings, norms, and linears that quant.target_modules leaves out",
            try_="quant.kind=none",
        )
    for linear in chosen:
        # a copy also where the dtype is right: the group's storage is let go
        linear.adapter = TrainedPart(linear.dense(dtype).detach().to(master(dtype), copy=True))
    weight = TrainedWeight(group, None if len(chosen) == len(group.linears) else group.weight)
    group.weight = weight
    for linear in group.linears:
        linear.keep_in(weight)
    group.attached = TrainedGroup(group, weight)


def _into_memory(model: CausalLM, names: set[str], dtype: torch.dtype) -> None:
    """An embedding that stays in the checkpoint's file is read where it trains."""
    for module in list(model.modules()):
        for key, child in list(module.named_children()):
            if isinstance(child, MappedEmbedding) and f"{child.name}.weight" in names:
                table = Embedding(child.name, nn.Parameter(child.rows.whole(dtype), requires_grad=False))
                table.scale = child.scale
                setattr(module, key, table)


def _narrow(module: nn.Module, dtype: torch.dtype) -> None:
    """Let `module`, which has got a wider parameter, still give `dtype`."""
    if isinstance(module, (Norm, Head, FrozenLinear)) or dtype == master(dtype):
        return  # they do
    if isinstance(module, Embedding):
        module.dtype = dtype
    elif isinstance(module, nn.Embedding):  # rows are added up in the table's own dtype
        module.register_forward_hook(lambda _module, _inputs, rows: rows.to(dtype))
    elif not hasattr(module, "_kept_wide"):
        module._kept_wide = {}  # type: ignore[assignment]
        module.register_forward_pre_hook(lambda module, _inputs: _swap(module, dtype))
        module.register_forward_hook(lambda module, _inputs, _output: _swap_back(module), always_call=True)


def _swap(module: nn.Module, dtype: torch.dtype) -> None:
    """Someone's own module computes with its parameters as it finds them: for one pass they are rounded ones."""
    wide = {key: one for key, one in module.named_parameters(recurse=False) if one.requires_grad}
    module._kept_wide = wide  # type: ignore[assignment]
    for key, parameter in wide.items():
        module._parameters[key] = parameter.to(dtype)  # type: ignore[assignment]


def _swap_back(module: nn.Module) -> None:
    module._parameters.update(module._kept_wide)  # type: ignore[arg-type]
