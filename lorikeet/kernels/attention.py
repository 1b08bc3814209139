"""The face of attention.cpp, and the plan it follows: which queries meet which keys in a packed row.

The row is cut into groups: texts that share no key with what stands before. In the padded row each begins at a multiple
of STRIP. A block of queries meets segments of keys; a segment has a bit per strip that not every query sees. The plan
grows with tokens / QUERIES x tokens / STRIP and is made once per row, on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from lorikeet.kernels import Kernel, build, serves

STRIP = 32  # keys that are packed, masked or left out together
QUERIES = 64  # queries of a block
KEYS = 128  # keys of a segment, at most
WIDEST = 1024  # the C++ side's
LEAST_TASKS = 4  # of a backward pass: a long text is cut to give that many, so that two cores end together

_LIBRARIES = {torch.float32: "attention_float", torch.bfloat16: "attention"}
_forward, _backward = (
    {dtype: Kernel(library, f"attention_{way}") for dtype, library in _LIBRARIES.items()}
    for way in ("forward", "backward")
)


@dataclass(frozen=True)
class Plan:
    """Index arrays of a row, int32, as attention.cpp declares them (Block, Segment, Strip, Part)."""

    blocks: np.ndarray  # [B, 6]
    segments: np.ndarray  # [S, 3]
    strips: np.ndarray  # [padded / STRIP, 4]
    parts: np.ndarray  # [P, 5]
    order: np.ndarray  # [P], the costliest first
    until: np.ndarray  # [padded]
    limit: np.ndarray  # [padded]
    place: np.ndarray  # [padded]
    partial_rows: int  # of sums over parts of texts that were cut
    longest: int  # keys of a text that was not
    area: int  # scores computed per head

    def flops(self, heads: int, width: int) -> tuple[int, int]:
        """What is really computed, padding and hidden corners too: (forward, backward)."""
        return 4 * self.area * heads * width, 10 * self.area * heads * width


def takes(q: Tensor, k: Tensor, v: Tensor, scale: float) -> bool:
    """Whether the kernel computes these: its tiles are 32 wide, and hidden keys need a scale above zero."""
    width = q.shape[-1]
    if not (serves(q, k, v) and width % 32 == 0 and width <= WIDEST and scale > 1e-6 and len(q) > 0):
        return False
    return _allowed(q.dtype)


@cache
def _allowed(dtype: torch.dtype) -> bool:
    """Whether the system lets this process use the kernel's registers."""
    library = build.load(_LIBRARIES[dtype])
    return library is not None and bool(library.attention_allowed())


def forward(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """q [T, H, E], k and v [T, K, E] (last dimension contiguous) -> out [T, H, E] and the logarithms (base 2) of the
    softmax's sums [H, padded] float32, which `backward` takes."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    sums = torch.empty(q.shape[1], len(plan.until), dtype=torch.float32, device=q.device)
    call = _call(q, k, v, q, plan)
    _forward[q.dtype](call.ctypes.data, scale, softcap or 0.0, q, k, v, out, sums)
    return out, sums


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    dout: Tensor,
    plan: Plan,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients for q, k and v: slices of one buffer [T, H + 2 K, E], in this order."""
    heads, kv_heads = q.shape[1], k.shape[1]
    dout = unit(dout)
    grads = torch.empty(len(q), heads + 2 * kv_heads, q.shape[2], dtype=q.dtype, device=q.device)
    call = _call(q, k, v, dout, plan)
    _backward[q.dtype](call.ctypes.data, scale, softcap or 0.0, q, k, v, out, sums, dout, grads)
    return grads[:, :heads], grads[:, heads : heads + kv_heads], grads[:, heads + kv_heads :]


def unit(x: Tensor) -> Tensor:
    """x, with its last dimension contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _call(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, plan: Plan) -> np.ndarray:
    """The C++ side's `Call`."""
    sizes = [
        q.shape[1], k.shape[1], q.shape[2], len(plan.until), len(plan.strips), len(plan.blocks), len(plan.parts),
        plan.partial_rows, plan.longest, QUERIES, KEYS,
    ]  # fmt: skip
    strides = [stride for x in (q, k, v, dout) for stride in x.stride()[:2]]
    arrays = (plan.blocks, plan.segments, plan.strips, plan.parts, plan.order, plan.until, plan.limit, plan.place)
    return np.array([*sizes, *strides, *(array.ctypes.data for array in arrays)], np.int64)


def make_plan(until: np.ndarray, place: np.ndarray, window: int | None, kv_heads: int) -> Plan:
    """until, place [T]: a row's `visible_until` and positions."""
    size = len(until)
    until = np.minimum(until.astype(np.int64), size)
    starts = np.flatnonzero(np.concatenate([[True], np.maximum.accumulate(until)[:-1] <= np.arange(1, size)]))
    lengths = np.diff(np.append(starts, size))
    widths = -(-lengths // STRIP) * STRIP
    first = np.cumsum(widths) - widths
    padded = int(widths.sum())
    shift = np.repeat(first - starts, lengths)
    index = np.arange(size) + shift
    until_at, place_at = np.zeros(padded, np.int32), np.zeros(padded, np.int32)
    until_at[index], place_at[index] = until + shift, place
    limit = np.full(padded, np.iinfo(np.int32).max, np.int32)
    if window is not None:
        limit[index] = place + window
    ends = first + lengths
    blocks = _runs(first, widths, QUERIES)
    group = np.searchsorted(first, blocks[:, 0], side="right") - 1
    real = np.minimum(blocks[:, 1], ends[group] - blocks[:, 0])
    segments, counts = _segments(blocks, real, until_at, limit, place_at)
    scores = np.add.reduceat(segments[:, 1], np.cumsum(counts) - counts) * blocks[:, 1]
    table = np.column_stack([blocks, blocks[:, 0] - (first - starts)[group], real, np.cumsum(counts) - counts, counts])
    parts, of_group, work = _parts(table, segments, scores, group, kv_heads)
    begin = np.arange(0, padded, STRIP)
    owner = np.searchsorted(first, begin, side="right") - 1
    strips = np.column_stack([begin - (first - starts)[owner], np.minimum(STRIP, ends[owner] - begin), of_group[owner]])
    order = np.argsort(-work, kind="stable")
    return Plan(
        _narrowed(table), _narrowed(segments), _narrowed(strips), _narrowed(parts), _narrowed(order),
        until_at, limit, place_at, int(parts[parts[:, 4] >= 0, 3].sum()),
        int(parts[parts[:, 4] < 0, 3].max(initial=0)), int(scores.sum()),
    )  # fmt: skip


def _narrowed(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.int32)


def _runs(first: np.ndarray, widths: np.ndarray, most: int) -> np.ndarray:
    """Runs cut into pieces of at most `most`: [n, 2] of start and size."""
    counts = -(-widths // most)
    step = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    start = np.repeat(first, counts) + step * most
    return np.column_stack([start, np.minimum(most, np.repeat(first + widths, counts) - start)])


def _segments(
    blocks: np.ndarray, real: np.ndarray, until: np.ndarray, limit: np.ndarray, place: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(first key, keys, mask bits) of every block's segments in order, and how many each block has."""
    start, end = blocks[:, :1], blocks[:, :1] + real[:, None]
    begin = np.arange(0, len(until), STRIP)
    low, high = (f(until.reshape(-1, STRIP), axis=1) for f in (np.min, np.max))
    first_place = np.minimum.reduceat(np.where(until > 0, place, np.iinfo(np.int32).max), blocks[:, 0])[:, None]
    last_place = np.maximum.reduceat(place, blocks[:, 0])[:, None]
    strip_limit = np.where(until > 0, limit, 0).reshape(-1, STRIP)
    met = (begin < end) & (high > start) & (first_place < strip_limit.max(1))
    whole = (begin + STRIP - 1 <= start) & (low >= end) & (last_place < limit.reshape(-1, STRIP).min(1))
    row, column = np.nonzero(met)
    fresh = np.append(True, (np.diff(row) != 0) | (np.diff(column) != 1))
    run = np.flatnonzero(fresh)
    within = np.arange(len(row)) - np.repeat(run, np.diff(np.append(run, len(row))))
    bit = within % (KEYS // STRIP)
    head = np.flatnonzero(bit == 0)
    masks = np.add.reduceat((~whole[row, column]).astype(np.int64) << bit, head)
    sizes = np.diff(np.append(head, len(row))) * STRIP
    return np.column_stack([column[head] * STRIP, sizes, masks]), np.bincount(row[head], minlength=len(blocks))


def _parts(
    table: np.ndarray, segments: np.ndarray, scores: np.ndarray, group: np.ndarray, kv_heads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of blocks, each a backward task per key head: [P, 5]; of every group [G, 2] its first part and how many;
    and the work in each. The cuts decide the order of sums, so they follow from the row and not from threads."""
    most = max(1.0, scores.sum() * kv_heads / LEAST_TASKS / 0.9)
    whole = np.bincount(group, scores)
    pieces = np.ceil(whole / most)[group]
    before = np.cumsum(scores) - scores - (np.cumsum(whole) - whole)[group]
    piece = np.floor((before + scores / 2) / whole[group] * pieces).astype(np.int64)
    heads = np.flatnonzero(np.append(True, (np.diff(group) != 0) | (np.diff(piece) != 0)))
    counts = np.diff(np.append(heads, len(table)))
    lowest = np.minimum.reduceat(segments[table[:, 4], 0], heads)
    last = heads + counts - 1
    keys = table[last, 0] + table[last, 1] - lowest
    of_group = np.bincount(group[heads])
    split = (of_group > 1)[group[heads]]
    rows = np.cumsum(keys * split) - keys * split
    parts = np.column_stack([heads, counts, lowest, keys, np.where(split, rows, -1)])
    return parts, np.column_stack([np.cumsum(of_group) - of_group, of_group]), np.add.reduceat(scores, heads)
