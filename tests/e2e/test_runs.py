"""`lorikeet runs` and `train --detach` on real runs of the tiny model: started, watched, stopped, gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lorikeet.cli import _process
from lorikeet.train.status import holder, read_status
from train.trackers import events

from .conftest import LORIKEET, Place

STEPS = 40_000  # minutes: nobody who looks comes too late
LONG = {"max_steps": STEPS, "save_steps": 1000, "report_to": "tensorboard"}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def hear() -> None:
    """A child of a shell's background job would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def steps_of(run: Path) -> list[int]:
    whole, _, _ = (run / "metrics.jsonl").read_text().rpartition("\n")  # a row may be on its way
    rows = [json.loads(line) for line in whole.splitlines()]
    return [row["step"] for row in rows if row["kind"] == "train"]


@pytest.fixture
def run(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where runs of the test go; whatever still runs there at its end is ended."""
    monkeypatch.setattr(_process, "_WAIT_SECONDS", 300)  # a busy machine may take long to begin a run
    folder = place.folder / "run"
    yield folder
    if (process := holder(folder)) is not None:
        os.kill(process, signal.SIGKILL)


def test_detached_watched_stopped_and_gone_on_with(place: Place, run: Path) -> None:
    recipe = place.recipe(train=LONG)
    found = place.run("train", recipe, "--detach")
    assert found.code == 0, found.err
    process = int(found.out.split()[1])
    assert f"lorikeet runs watch {run.name}" in found.err and os.getsid(process) == process
    until(lambda: (run / "metrics.jsonl").exists() and len(steps_of(run)) >= 3)
    assert holder(run) == process
    again = place.run("train", recipe, "--detach")
    assert again.code == 2 and "is running already" in again.err
    (listed,) = json.loads(place.run("runs", "--json", run).out)
    assert listed["state"] == "running" and listed["steps"] == STEPS and listed["step"] >= 3
    watcher = subprocess.Popen(
        [*LORIKEET, "runs", "watch", str(run)], stdout=subprocess.PIPE, text=True, preexec_fn=hear
    )
    assert watcher.stdout is not None  # on a busy machine it may see the validation before a step
    assert any(f"/{STEPS}  loss" in watcher.stdout.readline() for _ in range(2))
    watcher.send_signal(signal.SIGINT)
    assert watcher.wait(300) == 0 and holder(run) == process  # the run does not care

    stopped = place.run("runs", "stop", run)
    assert stopped.code == 0 and "lorikeet runs resume" in stopped.err and holder(run) is None
    assert "stopped after step" in (run / "train.log").read_text()
    assert place.run("runs", "watch", run).code == 3
    step = steps_of(run)[-1]
    # it goes on by its own recipe, from anywhere
    os.chdir("/")
    assert place.run("runs", "resume", run, "--detach").code == 0
    until(lambda: len(steps_of(run)) > step + 2)
    place.run("runs", "stop", run)
    assert steps_of(run) == list(range(1, len(steps_of(run)) + 1)) and len(steps_of(run)) > step + 2
    assert [start["step"] for start in read_status(run)["starts"]] == [0, step]
    told = events.scalars(run / "tensorboard")["train/loss"]
    assert [number for number, _ in told] == steps_of(run)


def test_a_detached_run_that_cannot_begin_says_why_and_leaves_nothing(place: Place, run: Path) -> None:
    found = place.run("train", place.recipe(data={"train": ["gone.json"]}), "--detach")
    assert found.code == 2 and "gone.json" in found.err and not run.exists()


def test_killed_runs_are_seen_and_go_on(place: Place, run: Path) -> None:
    assert place.run("train", place.recipe(train={"max_steps": 4, "save_steps": 2})).code == 0
    (run / "summary.json").unlink()
    status = read_status(run)
    (run / "status.json").write_text(json.dumps(status | {"state": "running"}))
    (listed,) = json.loads(place.run("runs", "--json", run).out)
    assert listed["state"] == "killed"
    assert place.run("runs", "watch", run).code == 1
    found = place.run("runs", "resume", run)
    assert found.code == 0 and "going on from" in found.err
    (listed,) = json.loads(place.run("runs", "--json", ".").out)
    assert (listed["state"], listed["step"]) == ("finished", 4) and listed["best"]["name"] == "eval loss"


def failing(folder: Path) -> Path:
    """A tracker of someone's own that fails behind its second row."""
    (folder / "mine.py").write_text(
        "from lorikeet.train.trackers._contract import Tracker\n"
        "class Mine(Tracker):\n    def start(self, about, past):\n        return Told()\n"
        "class Told:\n    rows = 0\n    def row(self, row):\n        self.rows += 1\n"
        "        if self.rows > 2:\n            raise ConnectionError('no route to host')\n"
        "    def close(self, *, finished):\n        raise AssertionError('is not told any more')\n"
    )
    return folder / "mine.py"


def test_a_tracker_that_fails_mid_run_ends_nothing(place: Place, run: Path) -> None:
    mine = failing(place.folder)
    trackers: list[Any] = [str(mine), "tensorboard", {"kind": "jsonl", "path": "told.jsonl"}]
    found = place.run("train", place.recipe(train={"report_to": trackers}))
    assert found.code == 0, found.err
    assert found.err.count("no longer told") == 1 and "no route to host" in found.err
    assert steps_of(run) == [1, 2, 3, 4]
    assert [step for step, _ in events.scalars(run / "tensorboard")["train/loss"]] == [1, 2, 3, 4]
    assert (place.folder / "told.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-2])
    assert row["rss_bytes"] > row["rss_file_bytes"] > 0
    held = read_status(run)["held_bytes"]
    assert held["frozen"] > held["optimizer"] >= 2 * held["trained"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("runs", "gone"), "there is no folder 'gone'"),
        (("runs", "tiny.jsonl"), "is a file"),
        (("runs", "compar", "a"), "lorikeet runs compare"),
        (("runs", "compare", "gone", "gone"), "there is no run folder"),
        (("runs", "compare", ".", "."), "is not a run's folder"),
        (("runs", "watch", "gone"), "there is no run folder"),
        (("runs", "stop", "."), "is not a run's folder"),
        (("runs", "resume", "."), "is not a run's folder"),
        (("runs", "compare", "."), "Missing argument"),
    ],
)
def test_bad_input(place: Place, words: tuple[str, ...], said: str) -> None:
    found = place.run(*words)
    assert found.code == 2 and said in found.err and len(found.err.strip().splitlines()) <= 6


def test_a_tracker_without_its_package(place: Place, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    found = place.run("train", place.recipe(train={"report_to": "wandb"}))
    assert found.code == 2 and "lorikeet-llm[wandb]" in found.err and not run.exists()
