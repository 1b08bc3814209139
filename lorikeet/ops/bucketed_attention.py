"""Attention over a packed row in plain PyTorch: what computes where no compiled kernel does.

A row is cut into pieces (a run of queries that see the same earlier keys), pieces of like size are padded to a bucket,
and each bucket is two batched matmuls. All buckets' queries and keys are gathered in one go, and their results put back
in one go: on a CPU, calls and copies of small tensors cost as much as the arithmetic. The backward pass recomputes the
probabilities, so nothing of size queries x keys is kept between passes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 128  # longer runs are cut here: half of a long causal square is never computed
ROUND = 32  # bucket sizes are multiples of this: oneDNN makes and keeps a kernel for every shape it has not seen
BUCKET_SCORES = 1 << 17  # at most this many scores per head in a bucket: bounds the largest temporary


@dataclass(frozen=True)
class Bucket:
    """Pieces of like size, padded to [n, Lq] queries and [n, Lk] keys."""

    queries: np.ndarray  # [n, Lq] int64 into the row; -1 is padding
    keys: np.ndarray  # [n, Lk] int64; -1 is padding
    hidden: np.ndarray  # [n, Lq, Lk] bool: True where a query may not look


@dataclass
class Plan:
    """How a row is computed, and the memory that its layers use in turn: host work, once per row."""

    tokens: int
    buckets: list[Bucket]
    device: torch.device
    _workspaces: dict[Any, Workspace] = field(default_factory=dict)

    def workspace(self, q: Tensor, kv_heads: int) -> Workspace:
        """For tensors of these sizes."""
        key = (q.shape, kv_heads, q.dtype)
        if key not in self._workspaces:
            self._workspaces[key] = Workspace(self, q, kv_heads)
        return self._workspaces[key]

    def place(self, array: np.ndarray) -> Tensor:
        """The array on the row's device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


@dataclass(frozen=True)
class Part:
    """A bucket at work: its pieces of a workspace's buffers."""

    queries: Tensor  # [n * K, G * Lq, E], as are mixed and dqueries
    mixed: Tensor
    dqueries: Tensor
    keys: Tensor  # [n * K, Lk, E], as are values and their gradients
    values: Tensor
    dkeys: Tensor
    dvalues: Tensor
    scores: Tensor  # [n * K, G * Lq, Lk], as are the probabilities
    probabilities: Tensor
    split: Tensor  # the scores as [n, K, G, Lq, Lk]
    mask: Tensor  # [n, 1, 1, Lq, Lk]: what is added to them

    def softmax(self, scale: float, softcap: float | None) -> Tensor | None:
        """Fills `probabilities`; returns the capped scores where there is a cap.

        Without a cap the matmul adds to the mask: a row of 1,344 tokens takes 0.2 ms more so, 0.3 with a pass that
        adds it, 0.5 with one over those columns alone in which something is hidden, for short columns are slow."""
        capped, scores = None, self.scores
        if softcap is None:
            self.split.copy_(self.mask)
            torch.baddbmm(scores, self.queries, self.keys.mT, alpha=scale, out=scores)
        else:
            _scaled_bmm(self.queries, self.keys.mT, scale, scores)
            capped = scores.div_(softcap).tanh_().mul_(softcap).clone()
            self.split.add_(self.mask)
        torch.softmax(scores, -1, out=self.probabilities)
        return capped


class Workspace:
    """Buffers of a row's gathered queries, keys and values, made once: new pages cost more than what is computed in
    them. Rows of E numbers, one per token and head, are [n, K, G, Lq] and [n, K, Lk] in each bucket, one bucket after
    another: the query heads of one key head side by side, so that keys need no copies."""

    def __init__(self, plan: Plan, q: Tensor, kv_heads: int):
        self.heads, self.kv_heads, width = q.shape[1], kv_heads, q.shape[2]
        self.plan: Plan = weakref.proxy(plan)  # it owns us: in a circle the buffers would wait for Python's collector
        queries, keys = self._query_rows(self.heads), self._key_rows(kv_heads)
        self.queries, self.mixed = q.new_empty(2, len(queries), width)
        self.keys, self.values = q.new_empty(2, len(keys), width)
        self.gradients = q.new_empty(len(queries) + 2 * len(keys), width)
        self.parts = list(self._parts(q))
        self.padded_queries = plan.place(np.flatnonzero(queries < 0))
        self.outputs = plan.place(_inverse(queries))  # [T * H]: where each token's heads are among the queries
        self.indices, self.offsets = map(plan.place, self._bags())
        self._rows: dict[Any, Tensor] = {}

    def gather(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Fill the buffers."""
        self.gather_queries(q, self.queries)
        for x, buffer in ((k, self.keys), (v, self.values)):
            x, pitch = _flat(x)
            torch.index_select(x, 0, self._index("keys", self._key_rows, pitch), out=buffer)

    def gather_queries(self, x: Tensor, buffer: Tensor) -> None:
        """x [T, H, E], row by row; padding reads token 0."""
        x, pitch = _flat(x)
        torch.index_select(x, 0, self._index("queries", self._query_rows, pitch), out=buffer)

    def summed(self) -> Tensor:
        """The gradients of the gathered queries, keys and values as those of [T, H + 2 K, E]."""
        found = F.embedding_bag(self.indices, self.gradients, self.offsets, mode="sum")  # bfloat16: summed in float32
        return found.view(self.plan.tokens, -1, found.shape[1])

    def _index(self, name: str, rows: Callable[[int], np.ndarray], pitch: int) -> Tensor:
        if (name, pitch) not in self._rows:
            self._rows[name, pitch] = self.plan.place(rows(pitch).clip(0))
        return self._rows[name, pitch]

    def _query_rows(self, pitch: int) -> np.ndarray:
        """Of the gathered queries: token * pitch + head, -1 for padding."""
        head = np.arange(self.heads).reshape(self.kv_heads, -1, 1)
        return _rows([bucket.queries[:, None, None] for bucket in self.plan.buckets], head, pitch)

    def _key_rows(self, pitch: int) -> np.ndarray:
        return _rows([bucket.keys[:, None] for bucket in self.plan.buckets], np.arange(self.kv_heads)[:, None], pitch)

    def _bags(self) -> tuple[np.ndarray, np.ndarray]:
        """Which rows of the gradients each row of [T, H + 2 K] is the sum of: indices, and where each sum's begin."""
        pitch = self.heads + 2 * self.kv_heads
        keys = self._key_rows(pitch)
        shifted = [np.where(keys < 0, -1, keys + self.heads + own) for own in (0, self.kv_heads)]
        to = np.concatenate([self._query_rows(pitch), *shifted])
        order = np.argsort(to, kind="stable")[np.count_nonzero(to < 0) :]
        counts = np.bincount(to[order], minlength=self.plan.tokens * pitch)
        return order, np.cumsum(counts) - counts

    def _parts(self, like: Tensor) -> Iterator[Part]:
        heads, kv_heads, width, query, key = self.heads, self.kv_heads, like.shape[2], 0, 0
        most = max(bucket.queries.size * bucket.keys.shape[1] for bucket in self.plan.buckets)
        both = like.new_empty(2, heads * most)
        slopes = self.gradients.split([len(self.queries), len(self.keys), len(self.keys)])
        of_queries, of_keys = (self.queries, self.mixed, slopes[0]), (self.keys, self.values, *slopes[1:])
        for bucket in self.plan.buckets:
            (n, lq), lk = bucket.queries.shape, bucket.keys.shape[1]
            queries, keys = slice(query, query + n * heads * lq), slice(key, key + n * kv_heads * lk)
            query, key = queries.stop, keys.stop
            scores, probabilities = (buffer[: n * heads * lq * lk].view(n * kv_heads, -1, lk) for buffer in both)
            split = scores.view(n, kv_heads, -1, lq, lk)
            q, mixed, dq = (buffer[queries].view(n * kv_heads, -1, width) for buffer in of_queries)
            k, v, dk, dv = (buffer[keys].view(n * kv_heads, lk, width) for buffer in of_keys)
            yield Part(q, mixed, dq, k, v, dk, dv, scores, probabilities, split, self._mask(bucket.hidden, like.dtype))

    def _mask(self, hidden: np.ndarray, dtype: torch.dtype) -> Tensor:
        """[n, 1, 1, Lq, Lk]; finite, because a padded query may see nothing: its softmax must be finite too."""
        where = self.plan.place(hidden[:, None, None])
        return torch.zeros_like(where, dtype=dtype).masked_fill_(where, torch.finfo(dtype).min / 2)


class BucketedAttention(torch.autograd.Function):
    """Attention bucket by bucket. Saves q, k and v; recomputes probabilities in backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, softcap: float | None) -> Tensor:
        work = plan.workspace(q, k.shape[1])
        work.gather(q, k, v)
        for part in work.parts:
            part.softmax(scale, softcap)
            torch.bmm(part.probabilities, part.values, out=part.mixed)
        ctx.save_for_backward(q, k, v)
        ctx.plan, ctx.scale, ctx.softcap = plan, scale, softcap
        return work.mixed.index_select(0, work.outputs).view(q.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The three gradients are slices of one buffer [T, H + 2 K, E]."""
        q, k, v = ctx.saved_tensors
        work = ctx.plan.workspace(q, k.shape[1])
        work.gather(q, k, v)
        work.gather_queries(grads[0], work.mixed)
        work.mixed.index_fill_(0, work.padded_queries, 0)  # padding must send nothing to its keys
        for part in work.parts:
            capped = part.softmax(ctx.scale, ctx.softcap)
            probabilities, dscores = part.probabilities, part.scores
            torch.bmm(probabilities.mT, part.mixed, out=part.dvalues)
            torch.bmm(part.mixed, part.values.mT, out=dscores)
            torch.ops.aten._softmax_backward_data.out(dscores, probabilities, -1, dscores.dtype, grad_input=dscores)
            if capped is not None:
                dscores.mul_(1 - (capped / ctx.softcap) ** 2)
            _scaled_bmm(dscores, part.keys, ctx.scale, part.dqueries)
            _scaled_bmm(dscores.mT, part.queries, ctx.scale, part.dkeys)
        heads, kv_heads = q.shape[1], k.shape[1]
        return *work.summed().split([heads, kv_heads, kv_heads], 1), None, None, None


def _flat(x: Tensor) -> tuple[Tensor, int]:
    """x [T, heads, E] as rows of E, and how many a token is long: slices of a fused projection stay where they are."""
    heads, width = x.shape[1:]
    if x.stride()[1:] != (width, 1) or x.stride(0) % width:
        x = x.contiguous()
    pitch = x.stride(0) // width
    return x.as_strided(((len(x) - 1) * pitch + heads, width), (width, 1)), pitch


def _scaled_bmm(a: Tensor, b: Tensor, scale: float, out: Tensor) -> Tensor:
    """scale * a @ b, rounded once."""
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def _rows(places: list[np.ndarray], head: np.ndarray, pitch: int) -> np.ndarray:
    """token * pitch + head of all places and heads, one behind the other; -1 stays."""
    return np.concatenate([np.where(place < 0, -1, place * pitch + head).reshape(-1) for place in places])


def _inverse(rows: np.ndarray) -> np.ndarray:
    """Where each of the rows 0, 1, 2 ... stands; -1 is nowhere."""
    real = np.flatnonzero(rows >= 0)
    found = np.empty(len(real), np.int64)
    found[rows[real]] = real
    return found


def plan_buckets(visible_until: Tensor, positions: Tensor, window: int | None, device: torch.device) -> Plan:
    """Cut a row into pieces and put pieces of like size together."""
    until, place = visible_until.cpu().numpy(), positions.cpu().numpy()
    pieces = sorted(_pieces(until, place, window), key=lambda piece: (len(piece[2]), piece[1] - piece[0]), reverse=True)
    groups: list[list[tuple[int, int, np.ndarray]]] = []
    for piece in pieces:
        if groups and _fits([*groups[-1], piece]):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return Plan(len(until), [_bucket(group, place, window) for group in groups], device)


def _pieces(until: np.ndarray, place: np.ndarray, window: int | None) -> list[tuple[int, int, np.ndarray]]:
    """(first query, end, keys): runs of queries that see the same earlier keys, and those keys with their own."""
    size = len(until)
    changes = np.flatnonzero(until[1:] != until[:-1]) + 1
    cuts = np.unique(np.concatenate([[0, size], changes, until[until < size]]))
    pieces = []
    for start, end in zip(cuts[:-1].tolist(), cuts[1:].tolist()):
        earlier = np.flatnonzero(until[:start] > start)
        for first in range(start, end, QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, end)
            keys = np.concatenate([earlier, np.arange(start, last)])
            if window is not None:
                keys = keys[place[first:last].min() - place[keys] < window]
            pieces.append((first, last, keys))
    return pieces


def _fits(group: list[tuple[int, int, np.ndarray]]) -> bool:
    """Whether padding these pieces to one size wastes little and stays within the temporary's bound."""
    queries, keys = _sizes(group)
    used = sum((end - first) * len(keys) for first, end, keys in group)
    padded = queries * keys * len(group)
    return padded <= BUCKET_SCORES and padded <= 1.2 * used + 8192


def _sizes(group: list[tuple[int, int, np.ndarray]]) -> tuple[int, int]:
    """Padded numbers of queries and keys."""
    queries, keys = max(end - first for first, end, _ in group), max(len(keys) for *_, keys in group)
    return queries + -queries % ROUND, keys + -keys % ROUND


def _bucket(group: list[tuple[int, int, np.ndarray]], place: np.ndarray, window: int | None) -> Bucket:
    lq, lk = _sizes(group)
    queries, keys = np.full((len(group), lq), -1), np.full((len(group), lk), -1)
    for i, (first, end, own) in enumerate(group):
        queries[i, lq - (end - first) :], keys[i, lk - len(own) :] = np.arange(first, end), own
    q, k = queries[:, :, None], keys[:, None]
    hidden = np.logical_or(k < 0, k > q)
    if window is not None:
        hidden |= place[q] - place[k] >= window
    return Bucket(queries, keys, hidden)
