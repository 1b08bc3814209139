"""Keys and values of what was already read, so that each new token costs one token's work.

`Prefill` and `Decode` are two more views: the same network reads a packed row of prompts into the cache, then one
token per conversation, without a branch for either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lorikeet.base.prefix_tree import MIN_SHARED, lay_out, sorted_order
from lorikeet.models.causal_lm import Shape
from lorikeet.ops.attention import PackedView, Prefix

# oneDNN makes and keeps a kernel for every shape it has not seen: so keys and rows are read in few sizes
ROUND, ROUND_ROWS = 32, 8


class KvCache:
    """B rows of up to S tokens: keys and values [layers, B, K, S, E]. S is a multiple of ROUND."""

    def __init__(self, shape: Shape, rows: int, capacity: int, dtype: torch.dtype, device: torch.device):
        self.capacity = capacity + -capacity % ROUND
        sizes = (shape.layers, rows, shape.kv_heads, self.capacity, shape.head_dim)
        self.keys = torch.zeros(sizes, dtype=dtype, device=device)
        self.values = torch.zeros(sizes, dtype=dtype, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)

    @staticmethod
    def bytes_of(shape: Shape, rows: int, capacity: int, dtype: torch.dtype) -> int:
        """What a cache of these sizes takes."""
        return (
            2 * shape.layers * rows * shape.kv_heads * (capacity + -capacity % ROUND) * shape.head_dim * dtype.itemsize
        )

    def move(self, source: int, target: int) -> None:
        """Row `source` takes the place of row `target`, whose conversation is over."""
        length = int(self.lengths[source])
        for kept in (self.keys, self.values):
            kept[:, target, :, :length] = kept[:, source, :, :length]
        self.lengths[target] = length


class Prefill:
    """Reads prompts into `rows` of the cache (by default all, in order). A prefix that prompts share is computed once
    and stored for each, unless one of them is longer than `shares_within` (see `CausalLM.shares_within`).

    `begun`: (row, tokens) of a text in the cache that all prompts begin like, and go on from: it is not computed."""

    def __init__(
        self,
        cache: KvCache,
        prompts: Sequence[Sequence[int]],
        shares_within: int | None = None,
        *,
        rows: Sequence[int] | None = None,
        begun: tuple[int, int] | None = None,
    ):
        device = cache.keys.device
        ids = [np.asarray(prompt, np.int32) for prompt in prompts]
        order = sorted_order(ids)
        share = shares_within is None or max(map(len, ids)) <= shares_within
        tree = lay_out([ids[i] for i in order], share=share)
        paths = [tree.paths[place] for place in np.argsort(order)]  # back in the order of the prompts
        lengths = torch.tensor([len(path) for path in paths])
        into = torch.arange(len(paths)) if rows is None else torch.tensor(rows)
        self._donor, self._known = begun if begun is not None and share and begun[1] >= MIN_SHARED else (0, 0)
        assert self._known < min(map(len, ids)), "nothing would be left to compute"
        self.cache, self.rows = cache, into.tolist()
        self.tokens = torch.from_numpy(tree.tokens[self._known :]).to(device)
        self.positions = torch.from_numpy(tree.positions[self._known :]).to(device)
        # [B] predicts the next token
        self.last = torch.tensor([int(path[-1]) - self._known for path in paths], device=device)
        self._source = torch.from_numpy(np.concatenate(paths)).to(device)
        self._rows = torch.repeat_interleave(into, lengths).to(device)
        self._slots = torch.cat([torch.arange(len(path)) for path in paths]).to(device)
        self._packed = PackedView(torch.from_numpy(tree.visible_until), torch.from_numpy(tree.positions))
        cache.lengths[into.to(device)] = lengths.to(device)

    @property
    def visible_until(self) -> Tensor:
        """Of the row of prompts: see `PackedView`."""
        return self._packed.visible_until

    def lengths(self) -> Tensor:
        """See `View.lengths`."""
        return self._packed.lengths()[self._known :]

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
        cache, known = self.cache, self._known
        if known:
            k, v = (
                torch.cat([kept[layer, self._donor, :, :known].transpose(0, 1), new])
                for kept, new in ((cache.keys, k), (cache.values, v))
            )
            q = torch.cat([q.new_zeros(known, *q.shape[1:]), q])  # nobody asks for these: a few scores in vain
        cache.keys[layer, self._rows, :, self._slots] = k.index_select(0, self._source)
        cache.values[layer, self._rows, :, self._slots] = v.index_select(0, self._source)
        packed = self._packed.attend(layer, q, k, v, scale=scale, window=window, softcap=softcap, prefix=prefix)
        return packed[known:]


class Decode:
    """One new token for each of the first `live` rows (by default all); call `advance` after each.

    `rows` are computed: those, and some that hold nothing, so that few sizes occur. Those answer nonsense."""

    def __init__(self, cache: KvCache, live: int | None = None):
        self.cache = cache
        self.live = len(cache.lengths) if live is None else live
        self.rows = min(rounded_rows(self.live), len(cache.lengths))
        self._plan()

    @property
    def positions(self) -> Tensor:
        """[rows] rotary positions of the new tokens."""
        return self.cache.lengths[: self.rows]

    def lengths(self) -> Tensor:
        """See `View.lengths`; the new token is its text's last."""
        return self.positions + 1

    def advance(self) -> None:
        """The new tokens are now part of what was read."""
        self.cache.lengths[: self.live] += 1
        self._plan()

    def _plan(self) -> None:
        cache = self.cache
        cache.lengths[self.live : self.rows] = 0
        lengths = self.positions
        device, (kv_heads, capacity) = lengths.device, cache.keys.shape[2:4]
        longest = int(lengths.max()) + 1 if self.rows else 0
        self._longest = longest + -longest % ROUND  # what is not written yet is masked
        self._distance = lengths[:, None] - torch.arange(self._longest, device=device)  # [B, S]; negative: not written
        heads = torch.arange(self.rows * kv_heads, device=device).view(self.rows, kv_heads)
        self._places = (heads * capacity + lengths[:, None]).view(-1)  # of the new keys, in a layer's [B * K * S, E]
        self._masks: dict[tuple[int | None, int], Tensor] = {}

    def _mask(self, window: int | None, prefix: int, dtype: torch.dtype) -> Tensor:
        """[B, 1, 1, prefix + S]: 0 where a row's new token sees a key, else minus infinity."""
        if (window, prefix) not in self._masks:
            ahead = torch.arange(prefix, 0, -1, device=self._distance.device)
            distance = torch.cat([self.positions[:, None] + ahead, self._distance], dim=1)
            hidden = distance < 0
            hidden = hidden if window is None else hidden | (distance >= window)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self._masks[window, prefix] = mask.masked_fill_(hidden, float("-inf"))[:, None, None]
        return self._masks[window, prefix]

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
        """See `View.attend`; here T = B. The heads that read the same keys are the queries of one text. A prefix is
        kept once for all rows, not in the cache."""
        kept, (rows, heads, width) = (self.cache.keys[layer], self.cache.values[layer]), q.shape
        for place, new in zip(kept, (k, v)):
            place.view(-1, width).index_copy_(0, self._places, new.reshape(-1, width))
        keys, values = (place[:rows, :, : self._longest] for place in kept)
        q = q.view(rows, k.shape[1], -1, width)  # [B, K, G, E]
        mask = self._mask(window, 0 if prefix is None else len(prefix[0]), q.dtype)
        if prefix is None and softcap is None:
            mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
        else:
            mixed = _mixed(q, keys, values, mask, scale, softcap, prefix)
        return mixed.reshape(rows, heads, width)


def _mixed(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    scale: float,
    softcap: float | None,
    prefix: Prefix | None,
) -> Tensor:
    """Attention with what torch's own has no place for. q [B, K, G, E], keys and values [B, K, S, E] -> as q."""
    scores = q @ keys.mT  # [B, K, G, S]
    size = 0 if prefix is None else len(prefix[0])
    if prefix is not None:
        scores = torch.cat([q @ prefix[0].permute(1, 2, 0), scores], dim=-1)
    scores.mul_(scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    probabilities = scores.add_(mask).softmax(-1)
    mixed = probabilities[..., size:] @ values
    if prefix is not None:
        mixed += probabilities[..., :size] @ prefix[1].transpose(0, 1)
    return mixed


def rounded_rows(rows: int) -> int:
    """A power of two up to ROUND_ROWS, then its multiples."""
    return min(1 << max(0, rows - 1).bit_length(), rows + -rows % ROUND_ROWS)
