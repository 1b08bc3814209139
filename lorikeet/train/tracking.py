"""A run's metrics as they are told: to metrics.jsonl first, then to each tracker.

metrics.jsonl is written whatever happens to the others. A tracker that raises, or hangs, is told of in one line and let
go; what it missed it gets when the run next goes on.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from lorikeet.base.errors import Interrupted
from lorikeet.base.kinds import kind_field
from lorikeet.base.log import note
from lorikeet.base.options import Options
from lorikeet.train.metrics import Metrics
from lorikeet.train.trackers._contract import About, Session, Tracker

CLOSE_SECONDS = 60.0  # that a tracker gets at the end, to send what it has
MOST_WAITING = 20_000  # rows that a tracker may be behind


class TrackingOptions(Options):
    """The part of the recipe's `train` section that says where figures are shown."""

    report_to: list[kind_field("lorikeet.train.trackers", Tracker)] = Field(  # type: ignore[valid-type]
        [],
        description="Where figures go besides metrics.jsonl: names of trackers, or mappings with a kind and options.",
        examples=[["tensorboard"]],
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_or_none(cls, value: Any) -> Any:
        if value in (None, "none", ["none"]):
            return []
        return [value] if isinstance(value, str | dict | Tracker) else value


class _Teller(threading.Thread):
    """Tells one tracker, in a thread of its own: a server that does not answer keeps nobody waiting."""

    def __init__(self, name: str, session: Session):
        super().__init__(name=f"lorikeet-{name}", daemon=True)
        self.tracker, self.session, self.finished = name, session, False
        self.rows: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Tell rows until there is a None among them, then close."""
        try:
            while (row := self.rows.get()) is not None:
                self.session.row(row)
            self.session.close(finished=self.finished)
        except BaseException as error:  # whatever a package does, sys.exit too
            _dropped(self.tracker, error)

    def tell(self, row: dict[str, Any]) -> bool:
        """Hand one row over. False where the tracker failed, or is too far behind."""
        if self.is_alive() and self.rows.qsize() < MOST_WAITING:
            self.rows.put(row)
            return True
        if self.is_alive():
            _dropped(self.tracker, TimeoutError(f"{MOST_WAITING} rows behind"))
        return False

    def close(self, *, finished: bool) -> None:
        """Let it tell the rest, for CLOSE_SECONDS at most."""
        self.finished = finished
        self.rows.put(None)
        self.join(CLOSE_SECONDS)
        if self.is_alive():
            _dropped(self.tracker, TimeoutError(f"it did not end within {CLOSE_SECONDS:g} s"))


class Told(Metrics):
    """metrics.jsonl, with trackers that are told each row after it is written."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.tellers: list[_Teller] = []

    def append(self, row: dict[str, Any]) -> None:
        """Write one row, then tell it."""
        super().append(row)
        self.tellers = [teller for teller in self.tellers if teller.tell(row)]

    def add(self, tracker: Tracker, about: About) -> None:
        """Start a tracker with the rows there are."""
        kind = str(getattr(tracker, "kind", type(tracker).__name__))
        try:
            teller = _Teller(kind, tracker.start(about, self.rows()))
        except (KeyboardInterrupt, Interrupted):  # asked to stop, by Ctrl-C or a signal
            raise
        except BaseException as error:
            _dropped(kind, error)
            return
        teller.start()
        self.tellers.append(teller)

    def close(self, *, finished: bool) -> None:
        """End all trackers."""
        for teller in self.tellers:
            teller.close(finished=finished)
        self.tellers = []


def _dropped(name: str, error: BaseException) -> None:
    said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    note(f"{name}: no longer told ({said}); the run goes on, and metrics.jsonl has all rows")


def check_trackers(trackers: Sequence[Tracker]) -> None:
    """Raise MissingExtra or RecipeError for a tracker that could not work."""
    for tracker in trackers:
        tracker.check()


@contextmanager
def told(folder: Path, trackers: Sequence[Tracker], run_id: str, recipe: Mapping[str, Any]) -> Iterator[Told]:
    """The metrics of the run in `folder`, told to `trackers` until the block ends."""
    metrics = Told(folder / "metrics.jsonl")
    about = About(folder.resolve(), run_id, recipe)
    for tracker in trackers:
        metrics.add(tracker, about)
    finished = False
    try:
        yield metrics
        finished = True
    finally:
        metrics.close(finished=finished)
