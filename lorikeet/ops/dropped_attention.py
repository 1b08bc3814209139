"""Attention with dropout on its probabilities, in plain PyTorch: one conversation of a row at a time.

A fused kernel never holds the probabilities, and a mask over a packed row would depend on the packing. Here each
conversation has its own [L, L] for each group of heads, drawn from a seed of its own; nothing of that size is kept: the
backward pass computes it again, and draws the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lorikeet.base.rng import torch_rng
from lorikeet.ops.attention import PackedView, Prefix


@dataclass(frozen=True)
class Text:
    """A conversation in a row without shared prefixes: tokens start .. stop - 1, and the seed of its draws."""

    start: int
    stop: int
    seed: int

    @property
    def length(self) -> int:
        return self.stop - self.start


def reference_dropped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The definition: q [L, G, E] of one group of heads, their k and v [P + L, E], of which P stand before the text,
    `keep` [G, L, P + L] already divided by the probability to keep -> [L, G, E]. Dropout acts behind the softmax, so
    what a token looks at may sum to more or less than 1."""
    scores = torch.einsum("qge,ke->gqk", q, k).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    place = torch.arange(len(k), device=q.device)
    gap = place[len(k) - len(q) :, None] - place[None, :]
    seen = gap >= 0 if window is None else (gap >= 0) & (gap < window)
    probabilities = scores.masked_fill(~seen, float("-inf")).softmax(-1) * keep
    return torch.einsum("gqk,ke->qge", probabilities.to(v.dtype), v)


class DroppedView(PackedView):
    """A packed row whose conversations share no prefix. `asked`: whether attention came here at all."""

    def __init__(self, visible_until: Tensor, positions: Tensor, texts: Sequence[Text], p: float):
        super().__init__(visible_until, positions)
        self.texts, self.p, self.asked = texts, p, False

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, prefix: Prefix | None = None, **options: Any
    ) -> Tensor:
        """See `View.attend`."""
        self.asked = True
        kv_heads = k.shape[1]
        group = q.shape[1] // kv_heads
        whole = []
        for text in self.texts:
            part = slice(text.start, text.stop)
            heads = []
            for head in range(kv_heads):
                mine = q[part, head * group : (head + 1) * group]
                keys, values = k[part, head], v[part, head]
                if prefix is not None:
                    keys, values = (torch.cat([one[:, head], own]) for one, own in zip(prefix, (keys, values)))
                one_head = partial(self._one, text, layer, head, **options)
                heads.append(checkpoint(one_head, mine, keys, values, use_reentrant=False, preserve_rng_state=False))
            whole.append(torch.cat(heads, dim=1))
        return torch.cat(whole)

    def _one(self, text: Text, layer: int, head: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        generator = torch_rng(text.seed, "attention", layer, head, device=q.device)
        drawn = torch.rand(q.shape[1], len(q), len(k), generator=generator, device=q.device)
        keep = (drawn >= self.p) / (1 - self.p)
        return reference_dropped_attention(q, k, v, keep, **options)
