"""Lines for people: said while somebody listens, and no more than that."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lorikeet.base.log import note, progress

SAYS = """
import sys, time
from rich.progress import TextColumn
from lorikeet.base.log import note, progress
note("one")
sys.stdin.readline()
with progress(TextColumn("{task.fields[now]}")) as bar:
    task = bar.add_task("training", total=2, now="")
    for step in range(2):
        note(f"step {step}")
        bar.update(task, advance=1, now=str(step))
note("two")
sys.exit(3)
"""


def test_a_reader_that_goes_away_ends_nothing() -> None:
    """`lorikeet train ... 2>&1 | head -1`."""
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SAYS], text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stderr.readline() == "one\n"
        process.stderr.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait(timeout=300) == 3


def test_a_bar_that_never_began_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """A model that is here already, and standard error a file: rich ends the line that it did not write."""
    bar = progress()
    bar.add_task("downloading", total=None)
    bar.stop()
    assert capfd.readouterr().err == ""


def test_a_bar_in_a_file_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with progress() as bar:
        bar.update(bar.add_task("answering", total=2), advance=2)
    note("done")
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("answering ━") and second == "done"
