"""Keys and values of what was already read, so that each new token costs one token's work.

`Prefill` and `Decode` are two more views: the same network reads a packed row of prompts into the cache, then one
token per conversation, without a branch for either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lorikeet.base.prefix_tree import lay_out, sorted_order
from lorikeet.models.causal_lm import Shape
from lorikeet.ops.attention import PackedView, Prefix

ROUND = 32  # keys are read in multiples of this: oneDNN makes and keeps a kernel for every shape it has not seen


class KvCache:
    """B rows of up to S tokens: keys and values [layers, B, K, S, E]."""

    def __init__(self, shape: Shape, rows: int, capacity: int, dtype: torch.dtype, device: torch.device):
        sizes = (shape.layers, rows, shape.kv_heads, capacity, shape.head_dim)
        self.keys = torch.zeros(sizes, dtype=dtype, device=device)
        self.values = torch.zeros(sizes, dtype=dtype, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.capacity = capacity

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only (int64 indices): finished conversations leave."""
        self.keys, self.values = self.keys[:, rows].contiguous(), self.values[:, rows].contiguous()
        self.lengths = self.lengths[rows]


class Prefill:
    """Reads prompts into the cache's rows. A prefix that prompts share is computed once and stored for each, unless
    one of them is longer than `shares_within` (see `CausalLM.shares_within`)."""

    def __init__(self, cache: KvCache, prompts: Sequence[Sequence[int]], shares_within: int | None = None):
        device = cache.keys.device
        ids = [np.asarray(prompt, np.int32) for prompt in prompts]
        order = sorted_order(ids)
        share = shares_within is None or max(map(len, ids)) <= shares_within
        tree = lay_out([ids[i] for i in order], share=share)
        paths = [tree.paths[place] for place in np.argsort(order)]  # back in the order of the cache's rows
        lengths = torch.tensor([len(path) for path in paths])
        self.cache = cache
        self.tokens = torch.from_numpy(tree.tokens).to(device)
        self.positions = torch.from_numpy(tree.positions).to(device)
        self.last = torch.tensor([int(path[-1]) for path in paths], device=device)  # [B] predicts the next token
        self._source = torch.from_numpy(np.concatenate(paths)).to(device)
        self._rows = torch.repeat_interleave(torch.arange(len(paths)), lengths).to(device)
        self._slots = torch.cat([torch.arange(len(path)) for path in paths]).to(device)
        self._packed = PackedView(torch.from_numpy(tree.visible_until), torch.from_numpy(tree.positions))
        cache.lengths.copy_(lengths)

    @property
    def visible_until(self) -> Tensor:
        """Of the row of prompts: see `PackedView`."""
        return self._packed.visible_until

    def lengths(self) -> Tensor:
        """See `View.lengths`."""
        return self._packed.lengths()

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """See `View.attend`."""
        self.cache.keys[layer, self._rows, :, self._slots] = k.index_select(0, self._source)
        self.cache.values[layer, self._rows, :, self._slots] = v.index_select(0, self._source)
        return self._packed.attend(layer, q, k, v, scale=scale, window=window, softcap=softcap, prefix=prefix)


class Decode:
    """One new token per row; call `advance` after each."""

    def __init__(self, cache: KvCache):
        self.cache = cache
        self._plan()

    @property
    def positions(self) -> Tensor:
        """[B] rotary positions of the new tokens."""
        return self.cache.lengths

    def lengths(self) -> Tensor:
        """See `View.lengths`; the new token is its text's last."""
        return self.cache.lengths + 1

    def advance(self) -> None:
        """The new tokens are now part of what was read."""
        self.cache.lengths += 1
        self._plan()

    def _plan(self) -> None:
        lengths = self.cache.lengths
        self._rows = torch.arange(len(lengths), device=lengths.device)
        longest = int(lengths.max()) + 1 if len(lengths) else 0
        self._longest = min(longest + -longest % ROUND, self.cache.capacity)  # what is not written yet is masked
        index = torch.arange(self._longest, device=lengths.device)
        self._distance = lengths[:, None] - index  # [B, S], how far back each key is; negative: not written
        self._masks: dict[tuple[int | None, int], Tensor] = {}

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """See `View.attend`; here T = B. A prefix is kept once for all rows, not in the cache."""
        cache, (rows, heads, width) = self.cache, q.shape
        cache.keys[layer, self._rows, :, cache.lengths] = k
        cache.values[layer, self._rows, :, cache.lengths] = v
        keys, values = cache.keys[layer, :, :, : self._longest], cache.values[layer, :, :, : self._longest]
        q = q.view(rows, k.shape[1], -1, width)  # [B, K, G, E]
        scores = q @ keys.mT  # [B, K, G, S]
        size = 0 if prefix is None else len(prefix[0])
        if prefix is not None:
            scores = torch.cat([q @ prefix[0].permute(1, 2, 0), scores], dim=-1)
        scores.mul_(scale)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        probabilities = scores.masked_fill_(self._hidden(window, size), float("-inf")).softmax(-1)
        mixed = probabilities[..., size:] @ values
        if prefix is not None:
            mixed += probabilities[..., :size] @ prefix[1].transpose(0, 1)
        return mixed.reshape(rows, heads, width)

    def _hidden(self, window: int | None, prefix: int) -> Tensor:
        """[B, 1, 1, prefix + S] bool: the keys that a row's new token does not see."""
        if (window, prefix) not in self._masks:
            ahead = torch.arange(prefix, 0, -1, device=self._distance.device)
            distance = torch.cat([self.cache.lengths[:, None] + ahead, self._distance], dim=1)
            hidden = distance < 0
            self._masks[window, prefix] = (hidden if window is None else hidden | (distance >= window))[:, None, None]
        return self._masks[window, prefix]
