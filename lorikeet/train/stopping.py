"""Why a run may end before its last step: a request from outside, or a rule that looks at what was done.

The loop asks once after each step, when nothing is half done: `stop.now` is then saved and said. A reason that is a
good end (nothing is to go on from) sets `finished`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from lorikeet.base.errors import Interrupted
from lorikeet.base.log import note

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C; a scheduler's; the terminal is gone


@dataclass
class Stop:
    """A wish to end the run after the step in progress; the first reason stands."""

    reason: str | None = None  # for people and summary.json: "asked to stop by SIGTERM"
    finished: bool = False  # the run is complete as it stands: no checkpoint to go on from, exit code 0

    def ask(self, reason: str, *, finished: bool = False) -> None:
        """End after this step."""
        if self.reason is None:
            self.reason, self.finished = reason, finished

    def behind(self, last: int | None, step: int) -> None:
        """End where `step` is `last`, or lies behind it."""
        if last is not None and step >= last:
            self.ask(f"asked to stop behind step {last}")

    @property
    def now(self) -> bool:
        return self.reason is not None


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """A Stop that SIGINT, SIGTERM and SIGHUP ask; the step in progress is finished and saved.

    A second Ctrl-C ends the process at once, as usual."""
    stop = Stop()
    asked: list[int] = []

    def ask(number: int, _frame: object) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        stop.ask(f"asked to stop by {signal.Signals(number).name}")
        note("stopping after this step; press Ctrl-C again to stop at once")

    with _handled_by(ask):
        yield stop


@contextmanager
def stop_anywhere() -> Iterator[None]:
    """For what comes before and after the steps: the signals raise Interrupted where they find it."""

    def end(number: int, _frame: object) -> None:
        raise Interrupted(
            f"stopped by {signal.Signals(number).name} outside the training steps; nothing is lost",
            try_="the same command goes on from here",
        )

    with _handled_by(end):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    # under nohup the terminal's end is none of the run's business
    heard = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    try:
        before = {number: signal.signal(number, handler) for number in heard}
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
