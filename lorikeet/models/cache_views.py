"""The views of a network that reads into the pages of a cache: many tokens of each text, or one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lorikeet.base.prefix_tree import PrefixTree, lay_out, sorted_order
from lorikeet.kernels import attention as compiled
from lorikeet.kernels import paged_attention as compiled_pages
from lorikeet.models.kv_cache import NOBODY, PAGE, KvCache, Place, pages_for, slots
from lorikeet.ops.attention import PackedView, Prefix

ROUND_ROWS = 8  # oneDNN makes and keeps a kernel for every shape it has not seen: so rows come in few sizes


class Prefill:
    """Reads the next tokens of texts into their places, behind what is there. What texts share, of the tokens that are
    read and of the pages before them, is computed once and kept for each, unless `share` is off. Without `every` only
    the last state of each text is wanted."""

    def __init__(
        self,
        cache: KvCache,
        places: Sequence[Place],
        chunks: Sequence[Sequence[int]],
        *,
        share: bool = True,
        every: bool = True,
    ):
        self.cache, self.places, self.chunks = cache, places, chunks
        device = cache.keys.device
        row = _Row(places, [np.asarray(chunk, np.int32) for chunk in chunks], share)
        self.tokens = torch.from_numpy(row.tokens).to(device)
        self.positions = torch.from_numpy(row.positions[row.new]).to(device)
        # [B] predicts the next token
        self.last = torch.tensor([int(path[-1]) for path in row.paths], device=device)
        self._wanted = None if every or 2 * len(self.last) > len(self.tokens) else self.last.unique()
        self.paths = [torch.from_numpy(path).to(device) for path in row.paths]  # of each text's tokens
        source = np.concatenate(row.paths)
        alike = len(source) == len(row.tokens) and bool((source == np.arange(len(source))).all())
        self._source = None if alike else torch.from_numpy(source).to(device)
        into = [slots(place, place.length, place.length + len(chunk)) for place, chunk in zip(places, chunks)]
        self._into = _tensors(into, device)
        self._from = _tensors(row.known, device) if row.known else None
        self._new, self._old = (torch.from_numpy(np.flatnonzero(part)).to(device) for part in (row.new, ~row.new))
        self._packed = _Asked(torch.from_numpy(row.until), torch.from_numpy(row.positions), row.new)

    def advance(self) -> None:
        """The tokens are now part of what was read."""
        for place, chunk in zip(self.places, self.chunks):
            place.length += len(chunk)

    def lengths(self) -> Tensor:
        """See `View.lengths`."""
        return self._packed.lengths()[self._new.cpu()]

    def wanted(self) -> Tensor | None:
        """See `View.wanted`."""
        return self._wanted

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """See `View.attend`."""
        cache, source = self.cache, self._source
        cache.write(layer, *self._into, *((k, v) if source is None else (k[source], v[source])))
        if self._from is None:
            return self._packed.attend(layer, q, k, v, **options)
        k, v = (self._woven(old, new) for old, new in zip(cache.tokens(layer, *self._from), (k, v)))
        q = q.new_zeros(len(k), *q.shape[1:]).index_copy_(0, self._new, q)
        return self._packed.attend(layer, q, k, v, **options)[self._new]

    def _woven(self, old: Tensor, new: Tensor) -> Tensor:
        """What was there and what is read, in the order of the row."""
        both = new.new_empty(len(old) + len(new), *new.shape[1:])
        return both.index_copy_(0, self._old, old).index_copy_(0, self._new, new)


class _Row:
    """The packed row of a prefill: for each beginning that is in the cache, its tokens and the tree of what follows."""

    def __init__(self, places: Sequence[Place], chunks: Sequence[np.ndarray], share: bool):
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, place in enumerate(places):
            known = tuple(place.pages[: pages_for(place.length)])
            groups.setdefault((place.length, *known) if known else (0,), []).append(i)
        paths: dict[int, np.ndarray] = {}
        trees: list[PrefixTree] = []
        until, positions, new = [], [], []
        self.known: list[tuple[np.ndarray, np.ndarray]] = []
        start = read = 0  # where the group begins in the row, and among the tokens that are read
        for members in groups.values():
            length = places[members[0]].length
            order = [members[i] for i in sorted_order([chunks[i] for i in members])]
            tree = lay_out([chunks[i] for i in order], share=share)
            paths |= {i: path + read for i, path in zip(order, tree.paths)}
            trees.append(tree)
            size = length + len(tree.tokens)
            until += [np.full(length, start + size, np.int32), tree.visible_until + np.int32(start + length)]
            positions += [np.arange(length), tree.positions + length]
            new += [np.zeros(length, np.bool_), np.ones(len(tree.tokens), np.bool_)]
            if length:
                self.known.append(slots(places[members[0]], 0, length))
            start, read = start + size, read + len(tree.tokens)
        self.tokens = np.concatenate([tree.tokens for tree in trees])
        self.until, self.positions = np.concatenate(until), np.concatenate(positions)
        self.new = np.concatenate(new)
        self.paths = [paths[i] for i in range(len(places))]


class _Asked(PackedView):
    """A packed row of which only some tokens' attention is asked for: blocks of others are not computed."""

    def __init__(self, visible_until: Tensor, positions: Tensor, asked: np.ndarray):
        super().__init__(visible_until, positions)
        self._asked = asked

    def _plan(self, window: int | None, kv_heads: int) -> compiled.Plan:
        fresh = (window, kv_heads) not in self._plans
        plan = super()._plan(window, kv_heads)
        if fresh and not self._asked.all():
            before = np.concatenate([[0], np.cumsum(self._asked)])
            first, size = plan.blocks[:, 2], plan.blocks[:, 3]
            kept = plan.blocks[before[first + size] > before[first]]
            plan = self._plans[window, kv_heads] = replace(plan, blocks=np.ascontiguousarray(kept))
        return plan


class Decode:
    """One new token for each text; call `advance` after each pass. A place must have a page for it.

    `rows` are computed: those, and some for NOBODY, so that few sizes occur. Those answer nonsense."""

    def __init__(self, cache: KvCache, places: Sequence[Place]):
        self.cache, self.places, self.live = cache, places, len(places)
        self.rows = rounded_rows(self.live)
        self._plan()

    def padded(self, tokens: Sequence[int]) -> Tensor:
        """[rows]: a token of each text, and NOBODY's."""
        row = torch.zeros(self.rows, dtype=torch.int64)
        row[: self.live] = torch.tensor(tokens)
        return row.to(self.positions.device)

    def lengths(self) -> Tensor:
        """See `View.lengths`; the new token is its text's last."""
        return self.positions + 1

    def wanted(self) -> Tensor | None:
        """See `View.wanted`."""
        return None

    def advance(self) -> None:
        """The new tokens are now part of what was read."""
        for place in self.places:
            place.length += 1
        self._plan()

    def _plan(self) -> None:
        """`positions` [rows] of the new tokens, and where they and what is before them lies."""
        device = self.cache.keys.device
        lengths = np.zeros(self.rows, np.int64)
        lengths[: self.live] = [place.length for place in self.places]
        width = pages_for(int(lengths.max(initial=0)) + 1)
        table = np.full((self.rows, width), NOBODY, np.int32)
        for row, place in zip(table, self.places):
            some = place.pages[:width]
            row[: len(some)] = some
        self._table, self._lengths = table, lengths
        self.positions = torch.from_numpy(lengths).to(device)
        self._index: tuple[Tensor, Tensor, Tensor] | None = None
        self._masks: dict[tuple[int | None, int], Tensor] = {}

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The table [rows, n], and the page and the token within it of each new token [rows]."""
        if self._index is None:
            device = self.positions.device
            table = torch.from_numpy(self._table).long().to(device)
            page = table.gather(1, (self.positions // PAGE)[:, None])[:, 0]
            self._index = table, page, self.positions % PAGE
        return self._index

    def _mask(self, window: int | None, prefix: int, dtype: torch.dtype) -> Tensor:
        """[B, 1, 1, prefix + S]: 0 where a row's new token sees a key, else minus infinity."""
        if (window, prefix) not in self._masks:
            device, size = self.positions.device, self._table.shape[1] * PAGE
            ahead = torch.arange(prefix, 0, -1, device=device)
            distance = self.positions[:, None] - torch.arange(size, device=device)  # negative: not written
            distance = torch.cat([self.positions[:, None] + ahead, distance], dim=1)
            hidden = distance < 0
            hidden = hidden if window is None else hidden | (distance >= window)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
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
        cache = self.cache
        if prefix is None and compiled_pages.takes(q, k, v, cache.keys):
            return compiled_pages.forward(
                q, k, v, cache.keys[layer], cache.values[layer], cache.scales(layer), self._table, self._lengths,
                scale=scale, window=window, softcap=softcap,
            )  # fmt: skip
        table, page, within = self._tensors()
        cache.write(layer, page, within, k, v)
        keys, values = cache.texts(layer, table)
        rows, heads, width = q.shape
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


def _tensors(found: Sequence[tuple[np.ndarray, np.ndarray]], device: torch.device) -> tuple[Tensor, Tensor]:
    """The pages, and the tokens within them, one text behind the other."""
    pages, within = (torch.from_numpy(np.concatenate(parts)).to(device) for parts in zip(*found))
    return pages, within
