"""Attention over a packed row in plain PyTorch: what computes where no compiled kernel does.

A row is cut into pieces (a run of queries that see the same earlier keys), pieces of like size are gathered into padded
buckets, and each bucket is two batched matmuls. The backward pass recomputes the probabilities, so nothing of size
queries x keys is kept between passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

QUERY_BLOCK = 256  # longer runs are cut here: half of a long causal square is never computed
ROUND = 32  # bucket sizes are multiples of this: oneDNN makes and keeps a kernel for every shape it has not seen
BUCKET_SCORES = 1 << 22  # at most this many scores per head in a bucket: bounds the largest temporary


@dataclass(frozen=True)
class Bucket:
    """Pieces of like size, padded to [n, Lq] queries and [n, Lk] keys."""

    read_queries: Tensor  # [n * Lq] int64 into the row; padding points at token 0
    write_queries: Tensor  # [n * Lq] int64; padding points at T, a row that is thrown away
    keys: Tensor  # [n * Lk] int64; padding points at token 0 and is hidden
    hidden: Tensor | None  # [n, 1, 1, Lq, Lk] bool, True where a query may not look
    padded_queries: Tensor | None  # [n, 1, 1, Lq, 1] bool, or None where nothing is padded
    pieces: int


class BucketedAttention(torch.autograd.Function):
    """Attention bucket by bucket. Saves q, k, v and the output; recomputes probabilities in backward."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, buckets: list[Bucket], scale: float, softcap: float | None
    ) -> Tensor:
        out = q.new_empty(q.shape[0] + 1, *q.shape[1:])
        for bucket in buckets:
            probabilities, _ = _probabilities(q, k, bucket, scale, softcap)
            values = _gather_keys(v, bucket)
            mixed = torch.bmm(probabilities, values)  # [n * K, G * Lq, E]
            out.index_copy_(0, bucket.write_queries, _ungroup(mixed, q, bucket))
        out = out[:-1]
        ctx.save_for_backward(q, k, v, out)
        ctx.buckets, ctx.scale, ctx.softcap = buckets, scale, softcap
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dout,) = grads
        q, k, v, out = ctx.saved_tensors
        dq = q.new_empty(q.shape[0] + 1, *q.shape[1:])
        wide = torch.float32 if q.dtype in (torch.bfloat16, torch.float16) else q.dtype  # keys collect many sums
        dk, dv = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        delta = (dout * out).sum(-1, keepdim=True)  # [T, H, 1]: sum over keys of dP * P
        for bucket in ctx.buckets:
            probabilities, capped = _probabilities(q, k, bucket, ctx.scale, ctx.softcap)
            dmixed, drow = _gather_grads(dout, bucket, k.shape[1]), _gather_grads(delta, bucket, k.shape[1])
            keys, values = _gather_keys(k, bucket), _gather_keys(v, bucket)
            _scatter_keys(dv, torch.bmm(probabilities.mT, dmixed), bucket)
            dscores = torch.bmm(dmixed, values.mT).sub_(drow).mul_(probabilities)
            if capped is not None:
                dscores.mul_(1 - (capped / ctx.softcap) ** 2)
            dscores.mul_(ctx.scale)
            dq.index_copy_(0, bucket.write_queries, _ungroup(torch.bmm(dscores, keys), q, bucket))
            queries = _gather_queries(q, bucket, k.shape[1])
            _scatter_keys(dk, torch.bmm(dscores.mT, queries), bucket)
        return dq[:-1], dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _gather_queries(x: Tensor, bucket: Bucket, kv_heads: int) -> Tensor:
    """[T, H, E] -> [n * K, G * Lq, E]: the query heads of one key head side by side, so keys need no copies."""
    n, heads, width = bucket.pieces, x.shape[1], x.shape[2]
    rows = x.index_select(0, bucket.read_queries).view(n, -1, kv_heads, heads // kv_heads, width)
    return rows.permute(0, 2, 3, 1, 4).reshape(n * kv_heads, -1, width)


def _gather_grads(x: Tensor, bucket: Bucket, kv_heads: int) -> Tensor:
    """As `_gather_queries`, with zeros where a query is padding: it must send nothing to its keys."""
    rows = _gather_queries(x, bucket, kv_heads)
    if bucket.padded_queries is None:
        return rows
    split = (bucket.pieces, kv_heads, -1, bucket.padded_queries.shape[3], x.shape[2])
    return rows.view(split).masked_fill(bucket.padded_queries, 0).view(rows.shape)


def _gather_keys(x: Tensor, bucket: Bucket) -> Tensor:
    """[T, K, E] -> [n * K, Lk, E]."""
    n, heads, width = bucket.pieces, x.shape[1], x.shape[2]
    return x.index_select(0, bucket.keys).view(n, -1, heads, width).transpose(1, 2).reshape(n * heads, -1, width)


def _ungroup(x: Tensor, like: Tensor, bucket: Bucket) -> Tensor:
    """[n * K, G * Lq, E] -> [n * Lq, H, E], the inverse of `_gather_queries`."""
    n, heads, width = bucket.pieces, like.shape[1], like.shape[2]
    kv_heads = x.shape[0] // n
    return x.view(n, kv_heads, heads // kv_heads, -1, width).permute(0, 3, 1, 2, 4).reshape(-1, heads, width)


def _scatter_keys(total: Tensor, x: Tensor, bucket: Bucket) -> None:
    """Add [n * K, Lk, E] onto total [T, K, E]; hidden keys bring zeros to token 0."""
    n, heads, width = bucket.pieces, total.shape[1], total.shape[2]
    rows = x.view(n, heads, -1, width).transpose(1, 2).reshape(-1, heads, width)
    total.index_add_(0, bucket.keys, rows.to(total.dtype))


def _probabilities(
    q: Tensor, k: Tensor, bucket: Bucket, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Softmax of a bucket's scores [n * K, G * Lq, Lk], and the capped scores where there is a cap."""
    kv_heads = k.shape[1]
    queries, keys = _gather_queries(q, bucket, kv_heads), _gather_keys(k, bucket)
    scores = torch.bmm(queries, keys.mT).mul_(scale)
    capped = None
    if softcap is not None:
        scores = capped = softcap * torch.tanh(scores / softcap)
    if bucket.hidden is not None:
        lq, lk = bucket.hidden.shape[-2:]
        split = (bucket.pieces, kv_heads, -1, lq, lk)
        scores = scores.view(split).masked_fill(bucket.hidden, float("-inf")).view(scores.shape)
    return scores.softmax(-1), capped


def plan_buckets(visible_until: Tensor, positions: Tensor, window: int | None, device: torch.device) -> list[Bucket]:
    """Cut a row into pieces and gather pieces of like size. Pure host work, once per row (not per layer)."""
    until, place = visible_until.cpu().numpy(), positions.cpu().numpy()
    pieces = sorted(_pieces(until), key=lambda piece: (len(piece[2]), piece[1] - piece[0]), reverse=True)
    groups: list[list[tuple[int, int, np.ndarray]]] = []
    for piece in pieces:
        if groups and _fits([*groups[-1], piece]):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return [_bucket(group, until, place, window, device) for group in groups]


def _pieces(until: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """(first query, end, keys): runs of queries that see the same earlier keys, and those keys with their own."""
    size = len(until)
    changes = np.flatnonzero(until[1:] != until[:-1]) + 1
    cuts = np.unique(np.concatenate([[0, size], changes, until[until < size]]))
    pieces = []
    for start, end in zip(cuts[:-1].tolist(), cuts[1:].tolist()):
        earlier = np.flatnonzero(until[:start] > start)
        for first in range(start, end, QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, end)
            pieces.append((first, last, np.concatenate([earlier, np.arange(start, last)])))
    return pieces


def _fits(group: list[tuple[int, int, np.ndarray]]) -> bool:
    """Whether padding these pieces to one size wastes little and stays within the temporary's bound."""
    queries, keys = _sizes(group)
    used = sum((end - first) * len(keys) for first, end, keys in group)
    padded = queries * keys * len(group)
    return padded <= BUCKET_SCORES and padded <= 1.35 * used + 8192


def _sizes(group: list[tuple[int, int, np.ndarray]]) -> tuple[int, int]:
    """Padded numbers of queries and keys."""
    queries, keys = max(end - first for first, end, _ in group), max(len(keys) for *_, keys in group)
    return queries + -queries % ROUND, keys + -keys % ROUND


def _bucket(
    group: list[tuple[int, int, np.ndarray]],
    until: np.ndarray,
    place: np.ndarray,
    window: int | None,
    device: torch.device,
) -> Bucket:
    n, size = len(group), len(until)
    lq, lk = _sizes(group)
    read, write = np.zeros((n, lq), np.int64), np.full((n, lq), size, np.int64)
    keys = np.zeros((n, lk), np.int64)
    seen = np.zeros((n, lq, lk), bool)
    for i, (first, end, own) in enumerate(group):
        queries = np.arange(first, end)
        read[i, : end - first] = write[i, : end - first] = queries
        keys[i, : len(own)] = own
        seen[i, : end - first, : len(own)] = own[None, :] <= queries[:, None]
        if window is not None:
            seen[i, : end - first, : len(own)] &= place[queries][:, None] - place[own][None, :] < window
        seen[i, end - first :, 0] = True  # a padded query looks somewhere, so that its softmax is finite
    padded = (write == size)[:, None, None, :, None]
    hidden = ~seen[:, None, None]

    def place_on(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Bucket(
        place_on(read.reshape(-1)),
        place_on(write.reshape(-1)),
        place_on(keys.reshape(-1)),
        place_on(hidden) if hidden.any() else None,
        place_on(padded) if padded.any() else None,
        n,
    )
