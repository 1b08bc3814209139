"""Runs seen from outside: what state they are in, how they compare, and their rows as they come."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorikeet.base.errors import Interrupted, OutputError, RecipeError, TrainingError
from lorikeet.cli import _process
from lorikeet.train import run_compare, run_list
from lorikeet.train.run_files import find_runs, read_run, read_started
from lorikeet.train.run_follow import Tail, follow, line
from lorikeet.train.state import locked
from lorikeet.train.status import holder, read_status, recorded, starts_of

RECIPE = "model: {path: smollm2-135m}\nadapter: {kind: lora, r: 8}\nquant: {kind: nf4}\ntrain: {seed: 0}\n"


def make(folder: Path, *, losses: Any = (2.0, 1.5, 1.75), evals: Any = (), recipe: str = RECIPE, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"kind": "train", "step": i + 1, "loss": loss, "learning_rate": 1e-4} for i, loss in enumerate(losses)]
    rows += [{"kind": "eval", "step": step, "loss": loss, "token_accuracy": 1 / loss} for step, loss in evals]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(recipe)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


# what a run does with its lock, without the seconds that loading torch takes
HOLDER = """
import fcntl, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def end(*_):
    (folder / "asked").write_text("")
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
file = (folder / ".lock").open("a+")
fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
file.truncate(0)
file.write(str(os.getpid()))
file.flush()
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the folder, as a running run does."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_states(tmp_path: Path) -> None:
    known: dict[str, dict[str, Any]] = {
        "finished": {"summary": {"steps": 3}},
        "killed": {"status": {"state": "running"}},
        "stopped": {"status": {"state": "stopped", "why": "asked to stop by SIGTERM"}},
        "failed": {"status": {"state": "failed", "why": "TrainingError: nan"}},
    }
    for state, files in known.items():
        assert read_run(make(tmp_path / state, **files)).state()[0] == state
    assert read_run(make(tmp_path / "limit", summary={"ended_by": "limits.time"})).state() == ("stopped", "limits.time")
    assert read_run(make(tmp_path / "old")).state() == ("stopped", None)


def test_a_run_that_is_held_is_running(tmp_path: Path) -> None:
    run = make(tmp_path / "run", summary={"steps": 1})
    with held_elsewhere(run) as process:
        assert holder(run) == process.pid and read_run(run).state() == ("running", None)
    assert holder(run) is None and read_run(run).state()[0] == "finished"


def test_asking_who_holds_it_keeps_nobody_out(tmp_path: Path) -> None:
    for _ in range(3):
        with locked(tmp_path / "run"):
            assert holder(tmp_path / "run") == os.getpid()
        assert holder(tmp_path / "run") is None


@pytest.mark.parametrize(
    ("error", "state", "why"),
    [
        (None, "finished", None),
        (Interrupted("stopped after step 3", given="asked to stop by SIGTERM"), "stopped", "asked to stop by SIGTERM"),
        (KeyboardInterrupt(), "stopped", "at once"),
        (TrainingError("the loss is nan"), "failed", "TrainingError: the loss is nan"),
        (RuntimeError("a\nb"), "failed", "RuntimeError: a b"),
    ],
)
def test_the_end_is_written_down(tmp_path: Path, error: BaseException | None, state: str, why: str | None) -> None:
    try:
        with recorded(tmp_path) as record:
            record.begins(0, 9, {"frozen": 8})
            assert read_status(tmp_path)["state"] == "running"
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    status = read_status(tmp_path)
    assert status["state"] == state and (status["why"] or "").startswith(why or "")
    assert status["host"] == socket.gethostname() and status["held_bytes"] == {"frozen": 8}


def test_a_start_that_is_refused_leaves_the_status(tmp_path: Path) -> None:
    with recorded(tmp_path) as record:
        first = record.id
        record.begins(0, 9, {})
    with pytest.raises(RecipeError), recorded(tmp_path):
        raise RecipeError("train.seed differs")
    assert read_status(tmp_path)["state"] == "finished"
    with recorded(tmp_path) as record:
        record.begins(4, 9, {})
        assert record.id == first
    assert starts_of(read_status(tmp_path)) == [4]
    with recorded(tmp_path) as record:
        record.begins(0, 9, {})  # nothing could be gone on from
    assert starts_of(read_status(tmp_path)) == []


def test_the_table(tmp_path: Path) -> None:
    make(tmp_path / "a", evals=[(2, 1.9), (3, 1.2)], status={"state": "stopped", "steps": 40})
    make(tmp_path / "deep" / "b", recipe="model: {path: m}\n", status={"state": "failed", "why": "DataError: x"})
    (tmp_path / "deep" / "nothing").mkdir()
    make(tmp_path / "a" / "checkpoint-2")  # inside a run is no run
    found = run_list.list_runs([tmp_path, tmp_path / "a"])
    assert [Path(one["run"]).name for one in found] == ["a", "b"]
    assert found[0]["best"] == {"name": "eval loss", "value": 1.2, "step": 3} and found[0]["quant"] == "nf4"
    assert found[1]["best"] == {"name": "train loss", "value": 1.75, "step": 3} and found[1]["adapter"] == "lora"
    head, first, second = run_list.table(found)
    assert head.split() == list(run_list.HEADS)
    assert "3/40" in first and "eval loss 1.2 @ 3" in first and "lora on nf4" in first and "now" in first
    assert "failed (DataError)" in second


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ("{metric_for_best_model: token_accuracy}", 3),
        ("{metric_for_best_model: eval_loss}", 3),
        ("{metric_for_best_model: token_accuracy, greater_is_better: false}", 2),
    ],
)
def test_best_is_what_the_recipe_calls_best(tmp_path: Path, options: str, step: int) -> None:
    run = make(tmp_path / "a", evals=[(2, 1.9), (3, 1.2)], recipe=f"evaluate: {options}\n")
    found = run_list.best(read_run(run))
    assert found is not None and found["step"] == step


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for bad in ("gone", "file"):
        with pytest.raises(OutputError, match=bad):
            run_list.list_runs([tmp_path / bad])
    with pytest.raises(OutputError, match="is not a run's folder"):
        read_started(tmp_path)
    assert list(find_runs(tmp_path)) == []


@given(st.integers(0, 10**15))
def test_sizes_are_short(size: int) -> None:
    assert re.fullmatch(r"[\d.e+]{1,8} (B|KiB|MiB|GiB)", run_list.in_units(size))


def test_two_runs_compared(tmp_path: Path) -> None:
    first = make(tmp_path / "a", evals=[(3, 1.2)], summary={"eval_loss": 1.2, "tokens": 900})
    other = RECIPE.replace("r: 8", "r: 16").replace("seed: 0", "seed: 0, warmup_ratio: 0.1")
    second = make(tmp_path / "b", losses=[3.0, 2.0], recipe=other, status={"state": "running"})
    found = run_compare.compare(first, second)
    assert found["recipe"] == {"adapter.r": [8, 16], "train.warmup_ratio": [None, 0.1]}
    assert found["curves"]["loss"] == [[1, 2.0, 3.0], [2, 1.5, 2.0], [3, 1.75, None]]
    lines = run_compare.text(found)
    assert ["adapter.r", "8", "16"] in [one.split() for one in lines]
    assert ["2", "1.5000", "2.0000"] in [one.split() for one in lines]
    assert ["state", "finished", "killed"] in [one.split() for one in lines]
    json.dumps(found)


def test_equal_recipes_say_so(tmp_path: Path) -> None:
    found = run_compare.compare(make(tmp_path / "x" / "run"), make(tmp_path / "y" / "run"))
    lines = run_compare.text(found)
    assert lines[0] == "The recipes are the same."
    assert str(tmp_path / "x" / "run") in lines[2]  # equal names tell nothing apart


def test_plots(tmp_path: Path) -> None:
    evil = "</title><script>alert(1)</script>"
    first = make(tmp_path / "a", evals=[(3, 1.2)])
    second = make(tmp_path / "<b>", losses=[3, 2], recipe=f"train: {{x: '{evil}'}}\n")
    found = run_compare.compare(first, second)
    for name in ("plot.html", "plot.svg"):
        run_compare.plot(found, first, second, tmp_path / name)
        drawn = (tmp_path / name).read_text()
        assert drawn.count("<path") >= 2 and evil not in drawn and "<b>" not in drawn
    assert (tmp_path / "plot.html").read_text().count("<figure") == 4
    with pytest.raises(OutputError, match="cannot draw"):
        run_compare.plot(found, first, second, tmp_path / "plot.png")
    with pytest.raises(OutputError, match="nothing to draw"):
        empty = make(tmp_path / "empty", losses=[])
        run_compare.plot(run_compare.compare(empty, empty), empty, empty, tmp_path / "plot.svg")


def test_rows_as_they_come(tmp_path: Path) -> None:
    run = make(tmp_path / "run", losses=[2.0])
    tail, file = Tail(run), run / "metrics.jsonl"
    assert [row["step"] for row in tail.rows()] == [1] and tail.rows() == []
    with file.open("a") as more:
        more.write('{"kind": "train", "step": 2}\n{"kind": "tr')
    assert [row["step"] for row in tail.rows()] == [2]
    with file.open("a") as more:
        more.write('ain", "step": 3}\nnonsense\n')
    assert [row["step"] for row in tail.rows()] == [3]
    # it goes on from its checkpoint behind step 1: the file is replaced, 2 and 3 are done again
    (run / "new").write_text('{"kind": "train", "step": 1}\n')
    (run / "new").replace(file)
    assert tail.rows() == []
    with file.open("a") as more:
        more.write('{"kind": "train", "step": 2}\n')
    assert [row["step"] for row in tail.rows()] == [2]


def test_following_ends_with_the_run(tmp_path: Path) -> None:
    run = make(tmp_path / "run", losses=[2.0])
    waits: list[float] = []
    with held_elsewhere(run) as process:

        def wait(seconds: float) -> None:
            waits.append(seconds)
            with (run / "metrics.jsonl").open("a") as more:
                more.write(json.dumps({"kind": "train", "step": len(waits) + 1, "loss": 1.0}) + "\n")
            if len(waits) == 3:
                process.kill()
                while holder(run) is not None:
                    time.sleep(0.01)

        steps = [row["step"] for rows in follow(run, wait=wait) for row in rows]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"kind": "train", "step": 3, "loss": 1.5}, "step 3/9  loss 1.500"),
        ({"kind": "train", "step": 3, "loss": None, "learning_rate": 1e-4}, "step 3/9  loss nan  lr 1.0e-04"),
        (
            {"kind": "eval", "step": 3, "loss": 1.5, "token_accuracy": 0.5},
            "step 3/9  validation loss 1.5000  token acc",
        ),
        ({"kind": "chain", "step": 3}, None),
    ],
)
def test_lines(row: dict[str, Any], said: str | None) -> None:
    found = line(row, 9)
    assert found == said if said is None else found is not None and found.startswith(said)


def test_stop_asks_and_waits(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    with held_elsewhere(run) as process:
        assert _process.stop(run) == process.pid
        assert process.wait(300) == 3 and (run / "asked").exists() and holder(run) is None


def test_stop_harms_no_stranger(tmp_path: Path) -> None:
    """The lock names a process that does not hold it: a number from another machine or container."""
    run = make(tmp_path / "run", status={"state": "running", "host": "elsewhere"})
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as stranger:
        with held_elsewhere(run):
            (run / ".lock").write_text(str(stranger.pid))
            with pytest.raises(OutputError, match="cannot be found from here") as raised:
                _process.stop(run)
        assert "on elsewhere" in str(raised.value) and stranger.poll() is None
        stranger.kill()
    with pytest.raises(OutputError, match="is not running"):
        _process.stop(run)
