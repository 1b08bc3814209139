"""A prefix: keys and values in every layer that stand before whatever a text's tokens see (Li & Liang 2021; P-tuning
v2, Liu et al. 2022).

The P keys of a layer hold positions 0 to P - 1, and every text begins at P, as if it continued the prefix: so a window
leaves the prefix behind as it leaves tokens behind, which is what PEFT's do in transformers. The keys are used as they
are, without a rotation. `PrefixedView` gives them to any view, so packing, shared prefixes, checkpointing and the cache
work as they do without. `RecordedView` is the other direction: the keys and values that a text of tokens has.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from lorikeet.base.errors import ModelError
from lorikeet.ops.attention import Prefix, View, visible


def reference_prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: Prefix,
    visible_until: Tensor,
    positions: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The definition, in plain PyTorch: queries [T, H, E] on the prefix's keys and the row's, in one softmax."""
    size, group = len(prefix[0]), q.shape[1] // k.shape[1]
    keys, values = (torch.cat(pair).repeat_interleave(group, dim=1) for pair in ((prefix[0], k), (prefix[1], v)))
    scores = torch.einsum("qhe,khe->hqk", q, keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    distance = positions[:, None] + size - torch.arange(size, device=positions.device)
    ahead = torch.ones_like(distance, dtype=torch.bool) if window is None else distance < window
    seen = torch.cat([ahead, visible(visible_until, positions, window)], dim=1)
    return torch.einsum("hqk,khe->qhe", scores.masked_fill(~seen, float("-inf")).softmax(-1), values)


class PrefixedView:
    """A view whose layers have a prefix each; `prefix[l]` is layer l's keys and values [P, K, E]."""

    def __init__(self, view: View, prefix: Sequence[Prefix]):
        self.view, self.prefix = view, prefix
        self._asked: set[int] = set()

    def lengths(self) -> Tensor:
        """See `View.lengths`."""
        return self.view.lengths() + len(self.prefix[0][0])

    def wanted(self) -> Tensor | None:
        """See `View.wanted`."""
        return self.view.wanted()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """See `View.attend`. Raises ModelError for keys or values of other sizes than the prefix's."""
        keys, values = self.prefix[layer]
        if k.shape[1:] != keys.shape[1:] or v.shape[1:] != values.shape[1:]:
            raise _other_sizes(layer, k, v, tuple(keys.shape[1:]))
        self._asked.add(layer)
        return self.view.attend(layer, q, k, v, prefix=(keys.to(k.dtype), values.to(v.dtype)), **options)

    def check(self) -> None:
        """Raise ModelError where the network computed its attention without asking the view."""
        _check_asked(self._asked, len(self.prefix))


class RecordedView:
    """A view that keeps each layer's keys and values [T, K, E]."""

    def __init__(self, view: View):
        self.view = view
        self.kept: dict[int, Prefix] = {}

    def lengths(self) -> Tensor:
        """See `View.lengths`."""
        return self.view.lengths()

    def wanted(self) -> Tensor | None:
        """See `View.wanted`."""
        return self.view.wanted()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """See `View.attend`."""
        self.kept[layer] = k, v
        return self.view.attend(layer, q, k, v, **options)

    def check(self, layers: int, sizes: tuple[int, int]) -> None:
        """Raise ModelError unless so many layers have asked, all with keys and values of [K, E]."""
        _check_asked(self.kept, layers)
        for layer, (k, v) in self.kept.items():
            if k.shape[1:] != sizes or v.shape[1:] != sizes:
                raise _other_sizes(layer, k, v, sizes)


def _check_asked(asked: Collection[int], layers: int) -> None:
    if len(asked) < layers:
        raise ModelError(
            "the network does not leave its attention to the view, so it has no place for a prefix",
            given=f"{len(asked)} of {layers} layers asked",
            try_="adapter.kind=lora",
        )


def _other_sizes(layer: int, k: Tensor, v: Tensor, sizes: tuple[int, ...]) -> ModelError:
    """A bias by position (ALiBi) is more columns of the keys; some networks have keys wider than values."""
    return ModelError(
        f"layer {layer} has keys and values of other sizes than a prefix",
        given=f"keys {tuple(k.shape[1:])}, values {tuple(v.shape[1:])}",
        allowed=f"{sizes} for both, as in all layers",
        try_="adapter.kind=prompt, or lora",
    )
