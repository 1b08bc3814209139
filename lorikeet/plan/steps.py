"""The costliest step that a run has planned, and how it compares with the others of its first epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from lorikeet.base.nouns import Batch

LOOK_SECONDS = 3.0  # packing a step takes milliseconds, and a large epoch has many thousands
MOST_ROWS = 2  # of a step are run: the largest, then one that meets its gradients. The rest of a step is like them


@dataclass(frozen=True)
class Row:
    """One packed row, as far as cost goes."""

    tokens: int
    predictions: int


@dataclass(frozen=True)
class Planned:
    """The costliest step among those looked at."""

    batches: list[Batch]  # the rows that are run, the costliest first
    rows: list[Row]  # all of the step
    step: int  # which one it is, from 0; -1 where the data are not known
    looked_at: int  # steps
    steps: int  # of the run
    run_tokens: int  # computed in the whole run, estimated from the steps looked at

    @property
    def share(self) -> float:
        """Of the step's tokens, those in the rows that are run."""
        return sum(row.tokens for row in self.rows[: len(self.batches)]) / sum(row.tokens for row in self.rows)


def costliest(batches: Callable[[int], Sequence[Batch]], *, epoch_steps: int, steps: int, layers: int) -> Planned:
    """Look at the steps of the first epoch, as many as `LOOK_SECONDS` allow, evenly spread."""
    epoch_steps = min(epoch_steps, steps)
    until = time.perf_counter() + LOOK_SECONDS
    best: tuple[float, int, list[Batch]] | None = None
    looked_at = tokens = 0
    for step in _spread(epoch_steps):
        rows = sorted(batches(step), key=lambda row: _cost(row, layers), reverse=True)
        looked_at += 1
        tokens += sum(len(row.tokens) for row in rows)
        cost = _cost(rows[0], layers)
        if best is None or cost > best[0]:
            best = cost, step, rows
        if time.perf_counter() > until:
            break
    assert best is not None, "a run has steps"
    _, step, found = best
    sizes = [Row(len(row.tokens), len(row.targets)) for row in found]
    return Planned(found[:MOST_ROWS], sizes, step, looked_at, steps, round(tokens / looked_at * steps))


def full(row: Batch, *, conversations: int, examples_per_step: int, steps: int) -> Planned:
    """The step where the data are not known: rows like `row`, which holds so many conversations."""
    count = max(1, -(-examples_per_step // conversations))
    rows = [Row(len(row.tokens), len(row.targets))] * count
    return Planned([row] * min(count, MOST_ROWS), rows, -1, 0, steps, len(row.tokens) * count * steps)


def full_row(conversations: int, length: int) -> Batch:
    """A row of conversations of `length` tokens each, all of them learned: what data that nobody has seen can cost."""
    total = conversations * length
    place = torch.arange(total) % length
    ends = (torch.arange(total) // length + 1) * length
    trained = torch.nonzero(place > 0)[:, 0]
    return Batch(
        tokens=torch.zeros(total, dtype=torch.int64),
        positions=place,
        visible_until=ends.to(torch.int32),
        predict_at=trained - 1,
        targets=torch.zeros(len(trained), dtype=torch.int64),
        weights=torch.ones(len(trained)),
        total_weight=float(len(trained)),
        source_tokens=total,
    )


def _cost(row: Batch, layers: int) -> float:
    """Every layer keeps something of each token, the head once of each prediction."""
    return len(row.tokens) + len(row.targets) / max(1, layers)


def _spread(count: int) -> Iterator[int]:
    """0 .. count - 1 by their reversed bits: the first n of them lie evenly, whatever n. One by one: an epoch of a mix
    has as many steps as its recipe says, and only the first of these are ever looked at."""
    bits = max(1, (count - 1).bit_length())
    for number in range(1 << bits):
        if (step := int(f"{number:0{bits}b}"[::-1], 2)) < count:
            yield step
