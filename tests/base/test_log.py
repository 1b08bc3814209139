"""Lines for people: said while somebody listens, and no more than that."""

from __future__ import annotations

import subprocess
import sys

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
