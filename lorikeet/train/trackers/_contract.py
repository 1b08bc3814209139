"""Where a run's figures are shown besides its own folder: a tracker is told each row of metrics.jsonl.

metrics.jsonl stays the truth, and a tracker is a view of it. When a run goes on after a stop, the tracker gets all rows
that hold and makes its record equal to them: nothing twice, and nothing left of steps that are done again.
A tracker may fail at any call; the run then says so once and goes on without it (tracking.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lorikeet.base.options import Options

Row = Mapping[str, Any]  # "kind" (train, eval), "step", and figures


@dataclass(frozen=True)
class About:
    """The run that is told about."""

    folder: Path  # absolute
    id: str  # the same when the run goes on, another one when it starts anew
    recipe: Mapping[str, Any]  # as JSON has it

    @property
    def name(self) -> str:
        return self.folder.name


class Session(Protocol):
    """A tracker at work."""

    def row(self, row: Row) -> None:
        """One more row, in the order of metrics.jsonl."""

    def close(self, *, finished: bool) -> None:
        """The last call. `finished`: the run is at its end; otherwise it stopped, and may go on later."""


class Tracker(Options):
    """Base of the tracker kinds; fields are the options of an entry of `train.report_to`."""

    def check(self) -> None:
        """Raise MissingExtra or RecipeError, before anything is loaded, where it could not work."""

    def start(self, about: About, past: Sequence[Row]) -> Session:
        """Begin to tell. `past`: the rows from before that hold, empty for a run that begins."""
        raise NotImplementedError


def scalars(row: Row) -> dict[str, float]:
    """The figures of a row by the names that trackers show: `train/loss`, `eval/token_accuracy`. Only numbers that are
    finite; figures inside a mapping get one more part (`eval/accuracy_of_role/assistant`)."""
    return dict(_numbers(f"{row.get('kind', 'train')}", {name: row[name] for name in row if name != "step"}))


def _numbers(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _numbers(f"{prefix}/{name}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found.append((f"{prefix}/{name}", float(value)))
    return found


def step_of(row: Row) -> int | None:
    """The step that a row is about, or None for a row that is about none."""
    step = row.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) else None
