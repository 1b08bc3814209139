"""A step's conversations as packed rows: no padding, and a prefix that several share is laid out once.

The layout is base/prefix_tree.py's. Gradients are exactly those of the conversations one by one, because a trained
token in a shared prefix carries the sum of their weights.

Everything here is a pure function of (examples, seed, epoch, step), so resuming needs no saved data state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from lorikeet.base.nouns import Batch, Example
from lorikeet.base.prefix_tree import lay_out, shared_prefix, sorted_order
from lorikeet.base.rng import numpy_rng
from lorikeet.data.mix import Mixture


class ExampleSource(Protocol):
    """What packing needs of a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def steps_per_epoch(examples: int, examples_per_step: int) -> int:
    """The last step of an epoch may be smaller; none is dropped."""
    return math.ceil(examples / examples_per_step)


def total_steps(examples: int, examples_per_step: int, epochs: float, max_steps: int | None) -> int:
    """Steps of a whole run; `examples` are those of an epoch."""
    return max_steps or max(1, round(steps_per_epoch(examples, examples_per_step) * epochs))


@lru_cache(maxsize=2)  # every step asks for it, and of a million examples it takes 20 to 70 ms
def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's permutation of the examples, to be read only."""
    return numpy_rng(seed, "order", epoch).permutation(count)


def plan_step(
    examples: ExampleSource,
    *,
    seed: int,
    epoch: int,
    step: int,
    examples_per_step: int,
    row_tokens: int,
    share: bool = True,
    world: int = 1,
) -> list[list[Batch]]:
    """The micro-batches of step `step` of `epoch`, one list per rank, all of the same length."""
    chosen = _chosen(examples, seed, epoch, step, examples_per_step)
    rows = plan_rows([examples[int(i)] for i in chosen], row_tokens=row_tokens, share=share)
    batches = sorted((pack_row(row, share=share) for row in rows), key=lambda batch: -len(batch.tokens))
    ranks = [batches[rank::world] for rank in range(world)]
    for rank in ranks:
        rank += [_filler()] * (len(ranks[0]) - len(rank))
    return ranks


def _chosen(examples: ExampleSource, seed: int, epoch: int, step: int, examples_per_step: int) -> np.ndarray:
    """Which examples a step has. A weighted mix goes on drawing from epoch to epoch, in steps of one size."""
    if isinstance(examples, Mixture) and examples.turns is not None:
        first = (epoch * steps_per_epoch(examples.epoch_examples, examples_per_step) + step) * examples_per_step
        return examples.drawn(first, first + examples_per_step, seed)
    return order(len(examples), seed, epoch)[step * examples_per_step : (step + 1) * examples_per_step]


def run_step(
    examples: ExampleSource, step: int, *, seed: int, examples_per_step: int, row_tokens: int, share: bool = True
) -> list[Batch]:
    """Step `step` of a run on one device, counted over all its epochs."""
    epoch, within = _epoch(examples, step, examples_per_step)
    ranks = plan_step(
        examples,
        seed=seed,
        epoch=epoch,
        step=within,
        examples_per_step=examples_per_step,
        row_tokens=row_tokens,
        share=share,
    )
    return ranks[0]


def step_examples(examples: ExampleSource, step: int, *, seed: int, examples_per_step: int) -> list[Example]:
    """The conversations of that step."""
    epoch, within = _epoch(examples, step, examples_per_step)
    return [examples[int(i)] for i in _chosen(examples, seed, epoch, within, examples_per_step)]


def _epoch(examples: ExampleSource, step: int, examples_per_step: int) -> tuple[int, int]:
    """(epoch, step within it) of a run's step."""
    per_epoch = examples.epoch_examples if isinstance(examples, Mixture) else len(examples)
    return divmod(step, steps_per_epoch(per_epoch, examples_per_step))


def plan_rows(examples: Sequence[Example], *, row_tokens: int, share: bool = True) -> list[list[Example]]:
    """Split a step into as few rows as their order allows, the longest as short as it can be; none is above
    `row_tokens` unless one conversation alone is. Neighbours in the order share their prefixes."""
    ordered = [examples[i] for i in sorted_order([example.tokens for example in examples])]
    whole = [len(example.tokens) for example in ordered]
    alone = list(whole)  # what an example adds to the row of the one before it
    if share:
        for i in range(1, len(ordered)):
            alone[i] -= shared_prefix(ordered[i - 1].tokens, ordered[i].tokens)
    starts = _fill(whole, alone, row_tokens)
    low, high = max(whole, default=0), row_tokens
    while low < high:  # the smallest limit that needs no more rows
        middle = (low + high) // 2
        if len(_fill(whole, alone, middle)) > len(starts):
            low = middle + 1
        else:
            high = middle
    starts = _fill(whole, alone, high)
    return [ordered[start:stop] for start, stop in zip(starts, [*starts[1:], len(ordered)])]


def _fill(whole: Sequence[int], alone: Sequence[int], limit: int) -> list[int]:
    """Where rows start if each is filled to `limit`; the first of a row pays for its whole prefix."""
    starts: list[int] = []
    used = 0
    for i in range(len(whole)):
        if starts and used + alone[i] <= limit:
            used += alone[i]
        else:
            starts.append(i)
            used = whole[i]
    return starts


def pack_row(examples: Sequence[Example], *, share: bool = True) -> Batch:
    """One row from conversations in sorted order."""
    tree = lay_out([example.tokens for example in examples], share=share)
    weights = np.zeros(len(tree.tokens), np.float64)
    for path, example in zip(tree.paths, examples):
        weights[path] += example.weights
    trained = np.flatnonzero(weights > 0)
    assert (tree.parents[trained] >= 0).all(), "the first token of a conversation cannot be predicted"
    return Batch(
        tokens=torch.from_numpy(tree.tokens),
        positions=torch.from_numpy(tree.positions),
        visible_until=torch.from_numpy(tree.visible_until),
        predict_at=torch.from_numpy(tree.parents[trained]),
        targets=torch.from_numpy(tree.tokens[trained]),
        weights=torch.from_numpy(weights[trained].astype(np.float32)),
        total_weight=float(weights[trained].sum()),
        source_tokens=sum(len(example.tokens) for example in examples),
    )


def _filler() -> Batch:
    """A row without weight, so that all ranks do the same number of passes."""
    zero = torch.zeros(1, dtype=torch.int64)
    return Batch(zero, zero, torch.ones(1, dtype=torch.int32), zero, zero, torch.zeros(1), 0.0, 0)
