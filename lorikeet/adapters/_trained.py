"""Tensors of the base that train themselves: each is kept in float32, and rounded to the model's dtype as it is used.

Linears are exchanged in _trained_linears.py, experts in _trained_experts.py. Whatever else a checkpoint holds
(embeddings, norms, biases, a head) is exchanged for a wider parameter in each module that owns it, so a tied embedding
stays one tensor with one gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from lorikeet.adapters import _trained_experts as experts
from lorikeet.adapters import _trained_linears as linears
from lorikeet.adapters._trained_linears import TrainedPart, master
from lorikeet.base.errors import RecipeError, nearest
from lorikeet.base.log import note
from lorikeet.base.option_fields import as_yaml
from lorikeet.base.targets import means
from lorikeet.models.build import Embedding, MappedEmbedding, Norm
from lorikeet.models.causal_lm import CausalLM, Head
from lorikeet.models.experts import ExpertGroup
from lorikeet.models.linear import FrozenLinear

MIB = 1 << 20


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


def release(model: CausalLM, names: Iterable[str], *, quantised: bool = False) -> None:
    """Let the tensors of these checkpoint names train, also linears that are kept `quantised`. What else an adapter
    has put on a group of linears stays. Raises RecipeError for linears whose storage cannot."""
    chosen, dtype = set(names), model.dtype
    for group in model.groups():
        members = [one for one in group.linears if f"{one.name}.weight" in chosen]
        if isinstance(group, ExpertGroup):
            experts.release(group, members, dtype)
        else:
            linears.release(group, members, dtype, quantised=quantised)
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


def released(model: CausalLM) -> dict[str, nn.Parameter]:
    """What `release` made trainable but for experts, by the checkpoint's names."""
    named_linears = dict(model.linears())
    found: dict[str, nn.Parameter] = {}
    for slot in model.slots():
        stem, _, suffix = slot.name.rpartition(".")
        linear = named_linears.get(stem)
        if linear is not None and suffix == "weight":
            if isinstance(linear.adapter, TrainedPart):
                found[slot.name] = linear.adapter.weight
        elif isinstance(slot.holds, nn.Parameter) and slot.holds.requires_grad:
            found[slot.name] = slot.holds
    return found


def head_names(model: CausalLM) -> set[str]:
    """The checkpoint's names of the head's weight (the embedding's name where it is tied) and bias."""
    tensors = [one for one in (model.head.weight, model.head.bias) if one is not None]
    return {slot.name for slot in model.slots() if any(slot.holds is one for one in tensors)}


def embedding_name(model: CausalLM) -> str:
    """The checkpoint's name of the table in which tokens are looked up."""
    weight = getattr(model.embedder(), "weight", None)
    (name,) = (slot.name for slot in model.slots() if (slot.write is None if weight is None else slot.holds is weight))
    return name


def is_tied(model: CausalLM) -> bool:
    """Whether the head is the embedding's own tensor."""
    return head_names(model) == {embedding_name(model)}


def untie(model: CausalLM, *, option: str, given: str, allowed: str, try_: str | None = None) -> None:
    """Give the head a table of its own, and say so. Raises RecipeError about `option` where the network cannot."""
    if not model.untie():
        raise RecipeError(
            f"{option}: the head is the embedding's own tensor, and this network cannot have one of its own",
            given=given,
            allowed=allowed,
            try_=try_,
        )
    size = model.head.weight.nbytes / MIB
    note(f"the head was tied to the embedding: it trains as a table of its own, {size:.0f} MiB more")


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
