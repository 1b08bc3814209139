"""The contract of a network: hidden states from tokens, a head that is never applied whole, and named linears.

The training step, the adapters and the engine know a model only through this class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from lorikeet.base.errors import ModelError
from lorikeet.models.linear import FrozenLinear, LinearGroup
from lorikeet.models.slots import Slot
from lorikeet.ops.attention import View
from lorikeet.ops.label_smoothing import margin
from lorikeet.ops.linear_cross_entropy import HeadLoss, full_logits, linear_cross_entropy


@dataclass(frozen=True)
class Shape:
    """The sizes that everyone needs. `config` is the Hugging Face config.json the network came with."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    max_position: int
    config: dict[str, Any]


class Head(nn.Module):
    """Logits: scale * (hidden W^T + bias), capped. `weight` [V, D] is the embedding's own tensor where tied."""

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None = None,
        *,
        scale: float = 1.0,
        softcap: float | None = None,
    ):
        super().__init__()
        self.weight, self.bias, self.scale, self.softcap = weight, bias, scale, softcap
        self.new_rows: nn.Module | None = None  # those of new tokens: see new_rows.py

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor, *, chunk: int | None = None) -> HeadLoss:
        """hidden [N, D], targets [N], weights [N]: the weighted sum of token losses, in chunks (of `chunk`)."""
        options: dict[str, Any] = {"bias": self.bias, "scale": self.scale, "softcap": self.softcap, "chunk": chunk}
        if self.new_rows is not None:
            options["rows"] = self.new_rows.first, self.new_rows.weight
        return linear_cross_entropy(hidden, self.weight, targets, weights, **options)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, D] -> [N, V] float32; for generation, where N is small."""
        return full_logits(hidden, self.weight, bias=self.bias, scale=self.scale, softcap=self.softcap)

    def margin(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of each target's logit less the mean of all: what label smoothing adds to the loss."""
        weight: Tensor = self.weight
        if self.new_rows is not None:  # as `loss` has them: rows that get a gradient where the others have none
            rows, first = cast(Tensor, self.new_rows.weight), cast(int, self.new_rows.first)
            weight = torch.cat([weight[:first], rows.to(weight.dtype), weight[first + len(rows) :]])
        return margin(hidden, weight, targets, weights, bias=self.bias, scale=self.scale, softcap=self.softcap)


class CausalLM(nn.Module):
    """Base of all networks. Subclasses set `shape` and `head` and define `hidden`."""

    shape: Shape
    head: Head
    source: str = "native"  # whose network computes, with its version where it is not Lorikeet's
    activations: torch.dtype | None = None  # their dtype, where the head is kept in another
    gradient_checkpointing: bool | int = False  # layers computed twice in training: all, none, or the first so many
    grown: tuple[int, int] | None = None  # new tokens that the tables were grown for: the first, how many
    shares_within: int | None = None  # longer texts must not share a prefix: their length changes what a token computes

    def hidden(self, tokens: Tensor, positions: Tensor, view: View) -> Tensor:
        """tokens [T] int64, positions [T] int64 -> the last hidden states [T, D], after the final norm.

        Those of tokens that the view does not want may be zeros."""
        raise NotImplementedError

    @property
    def reads_whole(self) -> bool:
        """Whether every pass computes whole texts, so that keys and values are of no use."""
        return False

    def surround(self, around: Callable[..., Tensor]) -> None:
        """From now on `hidden` is `around(hidden, tokens, positions, view)`, which is given the one before."""
        self.hidden = partial(around, self.hidden)  # type: ignore[method-assign]

    def embedder(self) -> nn.Module:
        """The module that makes of ids [T] what enters the network [T, D]. Raises ModelError where none is found."""
        sizes = self.shape.vocab_size, self.shape.width
        found = [
            module
            for module in self.modules()
            if isinstance(module, nn.Embedding) and (module.num_embeddings, module.embedding_dim) == sizes
        ]
        if len(found) != 1:
            raise ModelError(
                "the network does not show where its tokens enter",
                given=f"{len(found)} modules nn.Embedding{sizes}",
                allowed="one",
                try_="adapter.kind=prefix, or lora",
            )
        return found[0]

    def untie(self) -> bool:
        """Give a tied head a table of its own, a copy of the embedding. False: this network cannot have one."""
        return False

    def computed_twice(self, layers: int) -> int:
        """How many of the first layers are recomputed for their gradients, in a pass that has gradients."""
        if not torch.is_grad_enabled():
            return 0
        asked = self.gradient_checkpointing
        return layers if asked is True else min(layers, int(asked))

    def groups(self) -> Iterator[LinearGroup]:
        """Every group of linears, in the order of the layers."""
        return (module for module in self.modules() if isinstance(module, LinearGroup))

    def linears(self) -> Iterator[tuple[str, FrozenLinear]]:
        """(checkpoint name, linear) of every linear but the head."""
        return ((linear.name, linear) for group in self.groups() for linear in group.linears)

    def slots(self) -> Iterator[Slot]:
        """Where each tensor of the checkpoint goes, in the order in which it is saved."""
        raise NotImplementedError

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(checkpoint name, dense tensor) of all that a Hugging Face folder holds, one at a time, without adapters."""
        for slot in self.slots():
            yield slot.name, slot.read(self.dtype)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return self.activations or self.head.weight.dtype
