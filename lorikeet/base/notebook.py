"""What a notebook's kernel needs to be told otherwise than a terminal: what is shown there is kept in a file.

A kernel's standard error is red on the page. It is no terminal, so nothing in it can be written over; but IPython sets
FORCE_COLOR in every kernel, at which rich takes it for one, and writes each state of a bar behind the one before.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.progress import Progress

_SECONDS = 0.5  # between two states of a bar: each is a message to the page


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook (IPython in a terminal is none)."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


class NotebookBar(Progress):
    """A bar that is one display, shown again in its place: the notebook's file keeps the last state. Rich's own for
    notebooks needs ipywidgets, of which a page without a kernel shows nothing."""

    def __init__(self, *columns: Any, **options: Any):
        super().__init__(*columns, auto_refresh=False, **options)
        self._display: Any = None
        self._open, self._last = False, 0.0

    def start(self) -> None:
        """See rich."""
        self._open = True

    def stop(self) -> None:
        """See rich; the last state is shown."""
        self.refresh()
        self._open = False

    def update(self, *task: Any, **changes: Any) -> None:
        """See rich."""
        super().update(*task, **changes)
        if time.monotonic() - self._last >= _SECONDS:
            self.refresh()

    def refresh(self) -> None:
        """See rich."""
        if not self._open or not self.tasks:
            return
        self._last = time.monotonic()
        with self.console.capture() as line:
            self.console.print(self.get_renderable())
        state = {"text/plain": line.get().rstrip()}
        if self._display is None:
            from IPython.display import display

            self._display = display(state, raw=True, display_id=True)
        else:
            self._display.update(state, raw=True)
