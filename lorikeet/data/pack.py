"""A step's conversations as packed rows: no padding, and a prefix that several share is laid out once.

Sorted by their tokens, conversations with a common prefix stand next to each other, and the row is the walk through
their prefix tree, depth first: each adds only what its predecessor did not have. A token's keys stay visible until
the walk leaves its subtree. Gradients are exactly those of the conversations one by one, because a trained token in a
shared prefix carries the sum of their weights.

Everything here is a pure function of (examples, seed, epoch, step), so resuming needs no saved data state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from lorikeet.base.nouns import Batch, Example
from lorikeet.base.rng import numpy_rng

MIN_SHARED = 4  # a shorter common prefix is not worth a branch: attention would only be cut finer


class ExampleSource(Protocol):
    """What packing needs of a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def steps_per_epoch(examples: int, examples_per_step: int) -> int:
    """The last step of an epoch may be smaller; none is dropped."""
    return math.ceil(examples / examples_per_step)


def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's permutation of the examples."""
    return numpy_rng(seed, "order", epoch).permutation(count)


def plan_step(examples: ExampleSource, *, seed: int, epoch: int, step: int, examples_per_step: int, row_tokens: int, share: bool = True, world: int = 1) -> list[list[Batch]]:  # fmt: skip
    """The micro-batches of step `step` of `epoch`, one list per rank, all of the same length."""
    chosen = order(len(examples), seed, epoch)[step * examples_per_step : (step + 1) * examples_per_step]
    rows = plan_rows([examples[int(i)] for i in chosen], row_tokens=row_tokens, share=share)
    batches = sorted((pack_row(row, share=share) for row in rows), key=lambda batch: -len(batch.tokens))
    ranks = [batches[rank::world] for rank in range(world)]
    for rank in ranks:
        rank += [_filler()] * (len(ranks[0]) - len(rank))
    return ranks


def plan_rows(examples: Sequence[Example], *, row_tokens: int, share: bool = True) -> list[list[Example]]:
    """Split a step into rows of about equal size, none above `row_tokens` unless one conversation alone is."""
    keys = [example.tokens.astype(">i4").tobytes() for example in examples]
    ordered = [examples[i] for i in sorted(range(len(examples)), key=keys.__getitem__)]
    costs = [len(example.tokens) for example in ordered]
    for i in range(1, len(ordered)):
        costs[i] -= _shared(ordered[i - 1].tokens, ordered[i].tokens, share)
    target = math.ceil(sum(costs) / max(1, math.ceil(sum(costs) / row_tokens)))
    rows: list[list[Example]] = []
    used = 0
    for example, cost in zip(ordered, costs):
        if rows and used + cost <= row_tokens and (used < target or cost == 0):  # a duplicate costs nothing
            rows[-1].append(example)
            used += cost
        else:  # the first of a row pays for its whole prefix
            rows.append([example])
            used = len(example.tokens)
    return rows


def pack_row(examples: Sequence[Example], *, share: bool = True) -> Batch:
    """One row from conversations in sorted order. Raises nothing: every example has at least two tokens."""
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    parents: list[np.ndarray] = []
    size = sum(len(example.tokens) for example in examples)
    until, weights = np.zeros(size, np.int32), np.zeros(size, np.float64)
    path, previous, used = np.zeros(0, np.int64), np.zeros(0, np.int32), 0
    for example in examples:
        shared = _shared(previous, example.tokens, share)
        until[path[shared:]] = used  # the walk leaves what the predecessor had beyond the branch
        added = len(example.tokens) - shared
        path = np.concatenate([path[:shared], np.arange(used, used + added)])
        tokens.append(example.tokens[shared:])
        positions.append(np.arange(shared, shared + added))
        parents.append(np.concatenate([[-1], path[:-1]])[shared:])
        weights[path] += example.weights
        previous, used = example.tokens, used + added
    until[path] = used
    until = until[:used]
    until[until == 0] = used  # a duplicate that adds nothing leaves nothing
    flat, parent = np.concatenate(tokens).astype(np.int64), np.concatenate(parents)
    trained = np.flatnonzero(weights[:used] > 0)
    assert (parent[trained] >= 0).all(), "the first token of a conversation cannot be predicted"
    return Batch(
        tokens=torch.from_numpy(flat),
        positions=torch.from_numpy(np.concatenate(positions)),
        visible_until=torch.from_numpy(until),
        predict_at=torch.from_numpy(parent[trained]),
        targets=torch.from_numpy(flat[trained]),
        weights=torch.from_numpy(weights[trained].astype(np.float32)),
        total_weight=float(weights[trained].sum()),
        source_tokens=size,
    )


def _shared(left: np.ndarray, right: np.ndarray, share: bool) -> int:
    """Length of the common prefix, or 0 where it is too short to be worth a branch."""
    if not share:
        return 0
    size = min(len(left), len(right))
    different = np.flatnonzero(left[:size] != right[:size])
    common = int(different[0]) if len(different) else size
    return common if common >= MIN_SHARED else 0


def _filler() -> Batch:
    """A row without weight, so that all ranks do the same number of passes."""
    zero = torch.zeros(1, dtype=torch.int64)
    return Batch(zero, zero, torch.ones(1, dtype=torch.int32), zero, zero, torch.zeros(1), 0.0, 0)
