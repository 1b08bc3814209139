"""Adapters that requests name: LoRA folders read for a model that answers, and refused where they would not fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from lorikeet.adapters import _storage as storage
from lorikeet.adapters._targets import PREFIX
from lorikeet.adapters.lora import Lora, LoraGroup
from lorikeet.base.errors import CheckpointError, RecipeError
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.infer.answering_linears import Update
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.linear import FrozenLinear, LinearGroup
from lorikeet.quant._contract import Quant


class Loaded:
    """An adapter under a name. Another one of this name, later, is not this one: its `key` is."""

    _numbers = itertools.count()

    def __init__(self, name: str):
        self.key = f"{name} {next(self._numbers)}"


def check_takes(model: CausalLM) -> None:
    """Raise RecipeError where the model has an adapter of its own that cannot be left out for some rows."""
    for group in model.groups():
        if group.attached is not None and not isinstance(group.attached, LoraGroup):
            raise _own(f"{type(group.attached).__name__} on {group.linears[0].name}")
    plain = {id(part) for group in model.groups() for linear in group.linears if linear.adapter is not None
             for part in linear.adapter.parameters()}  # fmt: skip
    trained = [name for name, one in model.named_parameters() if one.requires_grad and id(one) not in plain]
    if trained or "hidden" in vars(model):
        raise _own(trained[0] if trained else "tokens before every text")


def _own(given: str) -> RecipeError:
    return RecipeError(
        "other adapters by name need a model whose own adapter can be left out",
        given=given,
        allowed="a base model, or one with LoRA on linears and nothing else",
        try_="serve the base model and load each adapter under a name",
    )


def read_updates(
    folder: Path, model: CausalLM, base: tuple[Checkpoint, Quant] | None, template: str
) -> dict[str, Update]:
    """Linear -> (A [R, in], B [out, R], factor) of the LoRA in `folder`. Raises CheckpointError for one of another base
    or template, or that does not fit, and RecipeError for another kind."""
    adapter, tensors, identity = storage.read_adapter(folder)
    if base is not None:
        storage.check_base(identity, *base, folder)
    if identity.get("template_fingerprint") not in (None, template):
        raise CheckpointError(
            f"the adapter in {folder} was trained with another template",
            given=str(identity["template_fingerprint"])[:12],
            allowed=template[:12],
        )
    if not isinstance(adapter, Lora) or adapter.init_lora_weights is not True:
        raise RecipeError(
            f"the adapter in {folder} cannot be given to single requests",
            given=str(adapter.model_dump().get("kind")),
            allowed="kind=lora",
            try_="open it as the model that answers",
        )
    sizes = {linear.name: (linear.out_features, linear.in_features) for linear in _linears(model)}
    found: dict[str, Update] = {}
    for name in sizes:
        a, b = (tensors.pop(f"{PREFIX}{name}.lora_{part}.weight", None) for part in "AB")
        if a is None or b is None:
            continue
        if a.shape[0] != b.shape[1] or (b.shape[0], a.shape[1]) != sizes[name]:
            raise _misfit(folder, f"{name}: A {tuple(a.shape)}, B {tuple(b.shape)}", f"a weight {sizes[name]}")
        found[name] = (a, b, adapter.factor_of(name))
    if tensors or not found:
        raise _misfit(folder, next(iter(tensors), "no tensors"), "A and B of the model's linears, and nothing else")
    return found


def _linears(model: CausalLM) -> Iterator[FrozenLinear]:
    """Those that may have an update: not experts."""
    for group in model.groups():
        if type(group) is LinearGroup:
            yield from group.linears


def _misfit(folder: Path, given: str, allowed: str) -> CheckpointError:
    return CheckpointError(
        f"the adapter in {folder} does not fit this model, or has more than single requests can have",
        given=given,
        allowed=allowed,
        try_="the base model that it was trained on, or open it as the model that answers",
    )
