"""Lines for people, on standard error, so that standard output stays clean for results."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, soft_wrap=True)


def note(line: str) -> None:
    """Say one line to the person at the terminal."""
    console.print(line, markup=False)


def progress(*extra_columns: TextColumn) -> Progress:
    """A progress bar: description, bar, count, elapsed and remaining time, then the caller's own columns."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *extra_columns,
        console=console,
        transient=False,
    )
