"""Lines for people, on standard error, so that standard output stays clean for results."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# plain lines in a notebook too: there rich would want widgets for a bar
console = Console(stderr=True, highlight=False, soft_wrap=True, force_jupyter=False)


def note(line: str) -> None:
    """Say one line to the person at the terminal."""
    console.print(line, markup=False)


def progress(*figures: TextColumn) -> Progress:
    """A progress bar: description, bar, count, time. With `figures` of the caller's own it fits 80 columns with them:
    a short bar and only the time that remains."""
    time = [TimeRemainingColumn()] if figures else [TimeElapsedColumn(), TimeRemainingColumn()]
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=8 if figures else 40),
        MofNCompleteColumn(),
        *time,
        *figures,
        console=console,
    )
