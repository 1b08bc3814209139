"""A merge that GPTQ rounds by the training data takes hours for a large model: stopped, it goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lorikeet.models import blockwise

from .conftest import Place

WORDS = ("--into", "gptq", "quant.group_size=32", "--calibrate", "12", "--no-verify")
KILLED = """
import os, signal, sys
from lorikeet.cli.main import run_command
from lorikeet.models import blockwise
solve, calls = blockwise.solve, []
def killed(*given):
    calls.append(1)
    if len(calls) == 6:  # in the second block
        os.kill(os.getpid(), signal.SIGKILL)
    return solve(*given)
blockwise.solve = killed
sys.exit(run_command(sys.argv[1:]))
"""


@pytest.fixture
def run(place: Place) -> str:
    changes = {"model": {"kernels": "eager"}, "quant": {"kind": "nf4"}, "evaluate": {"samples": 0}}
    place.ok("train", place.recipe(train={"max_steps": 1}, **changes))
    return "run"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lorikeet.json"}


def hidden(place: Place) -> list[Path]:
    return [path for path in place.folder.iterdir() if path.name.startswith(".")]


def test_after_kill_9_the_same_command_goes_on_to_the_same_bytes(place: Place, run: str) -> None:
    place.ok("merge", run, "whole", *WORDS)
    command = [sys.executable, "-c", KILLED, "merge", run, "out", *WORDS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place.folder)
    assert done.returncode == -9, done.stderr
    assert not (place.folder / "out").exists()
    again = place.run("merge", run, "out", *WORDS)
    assert again.code == 0 and "going on with what is finished: 2 parts" in again.err.replace("\n", " ")
    assert files(place.folder / "out") == files(place.folder / "whole")
    assert hidden(place) == []


def test_after_ctrl_c_too_and_other_options_begin_anew(place: Place, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = blockwise.solve, []

    def stopped(*given: object) -> object:
        calls.append(1)
        if len(calls) in (6, 12):
            raise KeyboardInterrupt
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(blockwise, "solve", stopped)
    found = place.run("merge", run, "out", *WORDS)
    assert found.code == 3 and "the same command goes on" in found.err
    [left] = hidden(place)
    assert ".blocks-" in left.name and not (place.folder / "out").exists()
    eight = [*WORDS, "quant.bits=8"]
    found = place.run("merge", run, "out", *eight)
    assert found.code == 3 and "going on" not in found.err, "in the second block again, and not with the first's"
    assert place.run("merge", run, "out", *eight).code == 0
    assert len(calls) == 12 + 4, "the first block is not rounded again"
    place.ok("merge", run, "whole", *eight)
    assert files(place.folder / "out") == files(place.folder / "whole")
    assert hidden(place) == []


def test_a_merge_of_another_kind_clears_what_was_left(place: Place, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*given: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(blockwise, "solve", stopped)
    assert place.run("merge", run, "out", *WORDS).code == 3
    place.ok("merge", run, "out", "--no-verify")
    assert hidden(place) == []
