"""A network of one's own: any `nn.Module` behind the contract of `CausalLM`.

The module computes hidden states from a packed row and asks the view for attention; its parameters keep the names of
its own state dict, which are those of the checkpoint. Each `nn.Linear` in it is exchanged for a frozen linear, so that
adapters, quantisation and merging meet it as they meet the native networks. docs/own_model.md is the guide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorikeet.base.errors import ModelError
from lorikeet.models.build import Build
from lorikeet.models.causal_lm import CausalLM, Head, Shape
from lorikeet.models.families._contract import Family
from lorikeet.models.linear import LinearGroup
from lorikeet.models.slots import Slot, parameter_slot
from lorikeet.models.spec import Spec
from lorikeet.ops.attention import View


class ModuleModel(CausalLM):
    """`module(tokens, positions, view)` gives hidden states [T, D]; `module.<head>` is its head, a linear without a
    bias or an embedding that is tied."""

    def __init__(self, module: nn.Module, shape: Shape, head: str = "head"):
        super().__init__()
        self.module, self.shape = module, shape
        weight = getattr(getattr(module, head, None), "weight", None)
        if not isinstance(weight, nn.Parameter) or tuple(weight.shape) != (shape.vocab_size, shape.width):
            raise ModelError(
                f"{type(module).__name__}.{head} is no head",
                given=f"a weight of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else "no weight",
                allowed=f"a linear or an embedding with a weight of shape ({shape.vocab_size}, {shape.width})",
            )
        self.head = Head(weight)

    def hidden(self, tokens: Tensor, positions: Tensor, view: View) -> Tensor:
        """See `CausalLM.hidden`."""
        if self.gradient_checkpointing:
            if not hasattr(self.module, "gradient_checkpointing"):
                raise ModelError(
                    f"train.gradient_checkpointing: {type(self.module).__name__} does not say that it can",
                    allowed="a module with an attribute gradient_checkpointing, which it heeds",
                    try_="train.gradient_checkpointing=false",
                )
            self.module.gradient_checkpointing = True  # type: ignore[assignment]
        found: Tensor = self.module(tokens, positions, view)
        return found

    def slots(self) -> Iterator[Slot]:
        """See `CausalLM.slots`; a parameter that appears twice (a tied head) has one slot, under its first name."""
        return _slots(self.module, "", set())


def _slots(module: nn.Module, name: str, seen: set[int]) -> Iterator[Slot]:
    if isinstance(module, LinearGroup):
        yield from module.slots()
        return
    for key, parameter in module.named_parameters(recurse=False):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield parameter_slot(f"{name}{key}", parameter)
    for key, child in module.named_children():
        yield from _slots(child, f"{name}{key}.", seen)


def freeze_linears(module: nn.Module, build: Build, *, keep: str, name: str = "") -> None:
    """Exchange every `nn.Linear` below `module`, but the one called `keep`, for an empty frozen linear."""
    for key, child in module.named_children():
        if type(child) is nn.Linear and f"{name}{key}" != keep:
            bias = child.bias is not None
            group = build.linears([f"{name}{key}"], [child.out_features], child.in_features, bias=bias)
            setattr(module, key, group)
        else:
            freeze_linears(child, build, keep=keep, name=f"{name}{key}.")


@dataclass(frozen=True)
class ModuleSpec(Spec):
    """What `ModuleFamily.network` builds from."""

    config: dict[str, Any]


class ModuleFamily(Family):
    """Base of the families in people's own files: `model_type`, `shape` and `module` are theirs to write."""

    kind: ClassVar[str] = "own"
    architecture: ClassVar[str] = ""
    head: ClassVar[str] = "head"  # the attribute of the module that holds the head's weight

    def shape(self, config: dict[str, Any]) -> Shape:
        """The sizes in a config.json. `heads`, `kv_heads` and `head_dim` are those of the caches of attention."""
        raise NotImplementedError

    def module(self, config: dict[str, Any]) -> nn.Module:
        """The network; what its parameters hold does not matter, they are read from the checkpoint."""
        raise NotImplementedError

    def spec(self, config: dict[str, Any]) -> ModuleSpec:
        """See `Family.spec`."""
        return ModuleSpec(self.shape(config), config)

    def network(self, spec: ModuleSpec, build: Build) -> CausalLM:
        """See `Family.network`."""
        with torch.device(build.device):
            module = self.module(spec.config)
        freeze_linears(module, build, keep=self.head)
        module.to(build.dtype).requires_grad_(False)
        return ModuleModel(module, spec.shape, self.head)
