"""What a person sees in a notebook: a bar is one line that is written over, and lines are no errors."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import nbformat
from nbclient import NotebookClient

from lorikeet.base.notebook import in_notebook

WORKS = """
import time
from rich.progress import TextColumn
from lorikeet.base.log import note, progress
note("one")
with progress(TextColumn("{task.fields[now]}")) as bar:
    task = bar.add_task("training", total=40, now="")
    for step in range(40):
        time.sleep(0.03)
        bar.update(task, advance=1, now=f"loss {step}")
        if step == 20:
            note("a line in between")
note("two")
"""
FAILS = """
try:
    with progress() as bar:
        bar.update(bar.add_task("answering", total=4), advance=1)
        raise KeyboardInterrupt
except KeyboardInterrupt:
    note("stopped")
"""
IS_HERE = """
from lorikeet.checkpoints.download import _bar
with _bar("model"):
    pass
"""


def shown(*cells: str) -> list[list[tuple[str, Any]]]:
    """What each of the cells leaves in the notebook's file: (stream or kind of display, text)."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    # what a cell shows is waited for by default for 4 s behind its end
    patience: dict[str, Any] = {"timeout": None, "startup_timeout": 1800, "iopub_timeout": 300}
    NotebookClient(notebook, kernel_name="python3", **patience).execute()
    return [list(whole(cell.outputs)) for cell in notebook.cells]


def whole(outputs: list[Any]) -> Iterator[tuple[str, Any]]:
    """A page joins what comes in a row on one stream."""
    for name, group in groupby(outputs, key=lambda one: one.get("name", one.output_type)):
        several = list(group)
        if several[0].output_type == "stream":
            yield name, "".join(one.text for one in several)
        else:
            yield from ((name, dict(one.data)) for one in several)


def test_a_bar_leaves_its_last_state_and_lines_are_no_errors() -> None:
    """Standard error is red in a notebook; and the kernel sets FORCE_COLOR, at which rich takes it for a terminal."""
    works, fails, is_here = shown(WORKS, FAILS, IS_HERE)
    before, (kind, data), after = works
    assert (before, after) == (("stdout", "one\n"), ("stdout", "a line in between\ntwo\n"))
    assert kind == "display_data" and set(data) == {"text/plain"}
    line = data["text/plain"]
    assert line.startswith("training ━━━━━━━━ 40/40 ") and line.endswith(" loss 39") and "\x1b" not in line

    (_, data), said = fails
    assert " 1/4 " in data["text/plain"] and said == ("stdout", "stopped\n")
    assert is_here == []


def test_here_is_no_notebook() -> None:
    assert not in_notebook()
