"""A network of one's own: any `nn.Module` behind the contract of `CausalLM`.

The module computes hidden states from a packed row and asks the view for attention; its parameters keep the names of
its own state dict, which are those of the checkpoint. Each `nn.Linear` in it is exchanged for a frozen linear, so that
adapters, quantisation and merging meet it as they meet the native networks. docs/own_model.md is the guide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from traceback import extract_tb
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorikeet.base.errors import LorikeetError, ModelError
from lorikeet.base.memory_errors import memory_ended
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.build import Build
from lorikeet.models.causal_lm import CausalLM, Head, Shape
from lorikeet.models.families._contract import Family
from lorikeet.models.linear import LinearGroup
from lorikeet.models.slots import Slot, parameter_slot
from lorikeet.models.spec import Spec
from lorikeet.ops.attention import View


class ModuleModel(CausalLM):
    """`module(tokens, positions, view)` gives hidden states [T, D]; `module.<head>` is its head, a linear or an
    embedding that is tied."""

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
        self.head = Head(weight, getattr(getattr(module, head), "bias", None))

    def hidden(self, tokens: Tensor, positions: Tensor, view: View) -> Tensor:
        """See `CausalLM.hidden`."""
        if self.gradient_checkpointing:
            if self.gradient_checkpointing is not True:
                raise ModelError(
                    "train.gradient_checkpointing: a network of one's own computes all layers twice, or none",
                    given=self.gradient_checkpointing,
                    allowed="true or false",
                )
            if not hasattr(self.module, "gradient_checkpointing"):
                raise ModelError(
                    f"train.gradient_checkpointing: {type(self.module).__name__} does not say that it can",
                    allowed="a module with an attribute gradient_checkpointing, which it heeds",
                    try_="train.gradient_checkpointing=false",
                )
            self.module.gradient_checkpointing = True  # type: ignore[assignment]
        if self.module.training != torch.is_grad_enabled():  # its dropout acts where an adapter's does
            self.module.train(torch.is_grad_enabled())
        with own_code(type(self.module).forward, f"{type(self.module).__name__}.forward"):
            found = self.module(tokens, positions, view)
        wanted = (len(tokens), self.shape.width)
        if not isinstance(found, Tensor) or found.shape != wanted or not found.is_floating_point():
            given = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ModelError(
                f"{type(self.module).__name__}.forward does not return the last hidden states",
                given=given,
                allowed=f"one float tensor [tokens, width], here {wanted}",
            )
        return found

    def slots(self) -> Iterator[Slot]:
        """See `CausalLM.slots`; a parameter that appears twice (a tied head) has one slot, under its first name."""
        return _slots(self.module, "", set())


@contextmanager
def own_code(function: Callable[..., Any], title: str) -> Iterator[None]:
    """Someone's own code can fail in any way: here as one ModelError, with the line of the file `function` is in."""
    try:
        yield
    except LorikeetError:
        raise
    except Exception as error:
        if memory_ended(error):
            raise
        code = getattr(function, "__code__", None)
        file = code.co_filename if code else "?"
        lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == file]
        place = f"{file}:{lines[-1]}" if lines else file
        raise ModelError(
            f"{place}: {title} fails",
            given=f"{type(error).__name__}: {error}",
            try_="--debug shows the traceback",
        ) from error


def _slots(module: nn.Module, name: str, seen: set[int]) -> Iterator[Slot]:
    if isinstance(module, LinearGroup):
        yield from module.slots()
        return
    for key, buffer in module.named_buffers(recurse=False):
        if key not in module._non_persistent_buffers_set:  # the others are no part of a state dict
            yield parameter_slot(f"{name}{key}", buffer)
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
        raise self._lacks("shape(self, config)")

    def module(self, config: dict[str, Any]) -> nn.Module:
        """The network; what its parameters hold does not matter, they are read from the checkpoint."""
        raise self._lacks("module(self, config)")

    def matches(self, checkpoint: Checkpoint) -> bool:
        """See `Family.matches`."""
        if not isinstance(getattr(self, "model_type", None), str):
            raise self._lacks('model_type = "..."')
        return super().matches(checkpoint)

    def spec(self, config: dict[str, Any]) -> ModuleSpec:
        """See `Family.spec`."""
        with own_code(type(self).shape, f"{type(self).__name__}.shape"):
            shape = self.shape(config)
        if not isinstance(shape, Shape):
            raise ModelError(f"{type(self).__name__}.shape returns no Shape", given=type(shape).__name__)
        return ModuleSpec(shape, config)

    def network(self, spec: ModuleSpec, build: Build) -> CausalLM:
        """See `Family.network`."""
        with torch.device(build.device), own_code(type(self).module, f"{type(self).__name__}.module"):
            module = self.module(spec.config)
        if not isinstance(module, nn.Module):
            raise ModelError(f"{type(self).__name__}.module returns no nn.Module", given=repr(module)[:80])
        module.to(build.dtype).requires_grad_(False)
        freeze_linears(module, build, keep=self.head)  # after `to`, which would round a quantisation's scales
        return ModuleModel(module, spec.shape, self.head)

    def _lacks(self, what: str) -> ModelError:
        return ModelError(f"{type(self).__name__} does not say: {what}", allowed="what docs/own_model.md lists")
