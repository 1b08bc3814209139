"""Lines for people, on standard error, so that standard output stays clean for results; in a notebook, where standard
error is red, among the results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import IO, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lorikeet.base.notebook import NotebookBar, in_notebook


class _Listener:
    """A stream to someone who may go away: the terminal was closed, or the program behind the pipe has ended. What is
    said then goes nowhere, and ends nothing."""

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """See io.TextIOBase."""
        with self._may_be_gone():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """See io.IOBase."""
        with self._may_be_gone():
            self._stream.flush()

    @contextmanager
    def _may_be_gone(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            with suppress(OSError, ValueError, AttributeError):  # it may be no file of the system's
                # what the stream still holds would fail once more at exit, and make the exit code 120
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


class _Console(Console):
    @property
    def file(self) -> IO[str]:
        """See rich; found anew each time, for tests and progress bars change sys.stderr."""
        return _Listener(super().file)  # type: ignore[return-value]

    @file.setter
    def file(self, new: IO[str]) -> None:
        self._file = new


_NOTEBOOK = in_notebook()
console = _Console(
    stderr=not _NOTEBOOK,
    highlight=False,
    soft_wrap=True,
    force_jupyter=False,  # a display for each line, in HTML
    force_terminal=False if _NOTEBOOK else None,
)


_said: ContextVar[set[str] | None] = ContextVar("said", default=None)  # within each_line_once


def note(line: str) -> None:
    """Say one line to the person at the terminal."""
    said = _said.get()
    if said is not None:
        if line in said:
            return
        said.add(line)
    console.print(line, markup=False)


@contextmanager
def each_line_once() -> Iterator[None]:
    """Within it no line is said twice: for what reads the same data twice, and finds the same each time."""
    before = _said.set(set())
    try:
        yield
    finally:
        _said.reset(before)


class _Everything(set[str]):
    def __contains__(self, line: object) -> bool:
        return True


@contextmanager
def no_lines() -> Iterator[None]:
    """Within it nothing is said: for what was read, and told, before."""
    before = _said.set(_Everything())
    try:
        yield
    finally:
        _said.reset(before)


class _Bar(Progress):
    def stop(self) -> None:
        """See rich, which ends the line of a bar that never began, too."""
        if self.live.is_started:
            super().stop()


def bar_of(*columns: ProgressColumn) -> Progress:
    """A progress bar, of these columns from left to right; in a notebook it is shown in place."""
    return (NotebookBar if _NOTEBOOK else _Bar)(*columns, console=console)


def progress(*figures: TextColumn) -> Progress:
    """A progress bar: description, bar, count, time. With `figures` of the caller's own it fits 80 columns with them:
    a short bar and only the time that remains."""
    time = [TimeRemainingColumn()] if figures else [TimeElapsedColumn(), TimeRemainingColumn()]
    bar = BarColumn(bar_width=8 if figures else 40)
    return bar_of(TextColumn("{task.description}"), bar, MofNCompleteColumn(), *time, *figures)
