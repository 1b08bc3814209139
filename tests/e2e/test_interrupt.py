"""Runs that are stopped, killed and started twice: the same command goes on, and ends as if nothing had happened."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lorikeet import api, config
from lorikeet.api import training
from lorikeet.base.errors import OutputError
from lorikeet.base.yaml_lines import dump
from lorikeet.train.state import checkpoints, intact
from lorikeet.train.status import read_status

from .conftest import LORIKEET, settings

STEPS = 80
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def recipe(tiny_model: Path, rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of several checkpoints."""
    folder = tmp_path_factory.mktemp("interrupt")
    (folder / "tiny.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {"max_steps": STEPS, "save_steps": 10, "save_total_limit": 3, "eval_steps": 30, "examples_per_step": 8}
    adapter = {"lora_dropout": 0.1}
    made = settings(tiny_model, folder / "tiny.jsonl", folder / "none", {"train": train, "adapter": adapter})
    (folder / "recipe.yaml").write_text(dump(made))
    return folder / "recipe.yaml"


# from a step on each takes a third of a second: whoever wants to catch the run there may come 20 seconds late
CAUGHT = """
import sys, time
from lorikeet.cli.main import run_command
from lorikeet.train import loop

log, slow_from = loop._log, int(sys.argv[1])

def slowly(metrics, done, *more):
    log(metrics, done, *more)
    if done.step >= slow_from:
        time.sleep(0.3)

loop._log = slowly
sys.exit(run_command(sys.argv[2:]))
"""


def to_catch(recipe: Path, output: Path, step: int) -> list[str]:
    """The command of a run that is there long enough behind `step`."""
    return [sys.executable, "-c", CAUGHT, str(step), "train", str(recipe), f"output_dir={output}"]


def start(command: list[str], recipe: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(recipe.parent / "cache")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(recipe: Path, output: Path) -> str:
    process = start([*LORIKEET, "train", str(recipe), f"output_dir={output}"], recipe)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said
    return said


def losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == sorted(set(steps)), "a step is written twice"
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """The run that nobody interrupted."""
    finish(recipe, recipe.parent / "whole")
    return recipe.parent / "whole"


def until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def steps_done(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_text().count('"kind": "train"') if file.exists() else 0


def assert_same(run: Path, whole: Path) -> None:
    assert (run / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()
    name = f"checkpoint-{STEPS}/optimizer.safetensors"
    assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert losses(run) == losses(whole) and len(losses(run)) == STEPS
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, whole)]
    for name in ("train_loss", "eval_loss", "eval_loss_before", "tokens", "steps"):
        assert summaries[0][name] == summaries[1][name], name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_stopped_on_request_and_gone_on(recipe: Path, whole: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    process = start(to_catch(recipe, run, 13), recipe)
    until(lambda: steps_done(run) >= 13, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 3, said
    assert "Interrupted: stopped after step" in said and "Traceback" not in said
    last = checkpoints(run)[-1]
    assert 13 <= last < STEPS and intact(run / f"checkpoint-{last}")
    assert f"stopped after step {last} of {STEPS}" in said
    assert not (run / "adapter").exists() and not (run / "summary.json").exists()
    assert "going on from" in finish(recipe, run)
    assert_same(run, whole)


def test_a_terminal_that_goes_away_saves_the_run(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """The system sends HUP then, and whatever the run still says to the terminal is an error."""
    run, (ours, theirs) = tmp_path / "run", pty.openpty()
    process = subprocess.Popen(
        to_catch(recipe, run, 13),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(recipe.parent / "cache"), "TERM": "xterm"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    closing = threading.Event()

    def watch() -> None:  # a person's eyes: without them the terminal would be full, and the run would wait
        with suppress(OSError):
            while not closing.is_set() and os.read(ours, 4096):
                pass
        os.close(ours)

    eyes = threading.Thread(target=watch)
    eyes.start()
    until(lambda: steps_done(run) >= 13, process)
    closing.set()
    eyes.join(timeout=600)
    assert process.wait(timeout=600) == 3
    last = checkpoints(run)[-1]
    assert 13 <= last < STEPS and intact(run / f"checkpoint-{last}")
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["why"]) == ("stopped", "asked to stop by SIGHUP")
    assert "going on from" in finish(recipe, run)
    assert_same(run, whole)


def test_killed_and_gone_on(recipe: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for least in (15, 35):  # killed twice
        process = start(to_catch(recipe, run, least), recipe)
        until(lambda least=least: steps_done(run) >= least, process)  # type: ignore[misc]
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    kept = [step for step in checkpoints(run) if intact(run / f"checkpoint-{step}")]
    assert kept and kept[-1] >= 30 - 10
    (run / ".checkpoint-99.abc").mkdir()  # as a process killed while it wrote would leave
    said = finish(recipe, run)
    assert f"going on from {run}/checkpoint-{kept[-1]}" in said
    assert_same(run, whole)
    assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.slow
def test_a_damaged_checkpoint_is_skipped(recipe: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(to_catch(recipe, run, 20), recipe)
    until(lambda: len(checkpoints(run)) >= 2, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    *_, before, last = checkpoints(run)
    file = run / f"checkpoint-{last}" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    said = finish(recipe, run)
    assert f"checkpoint-{last} is damaged or incomplete: skipped" in said and f"checkpoint-{before}" in said
    assert_same(run, whole)


def test_a_run_that_ends_while_a_second_is_prepared(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    read, prepare = config.load(recipe, [f"output_dir={run}", "train.max_steps=1"]), training.prepare

    def meanwhile(*given: Any) -> Any:
        monkeypatch.setattr(training, "prepare", prepare)
        api.train(read)
        return prepare(*given)

    monkeypatch.setattr(training, "prepare", meanwhile)
    with pytest.raises(OutputError, match="is finished"):
        api.train(read)
    assert [start["step"] for start in read_status(run)["starts"]] == [0]


def test_two_runs_in_one_folder(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start(to_catch(recipe, run, 1), recipe)
    until(lambda: steps_done(run) >= 1, first)
    second = start(to_catch(recipe, run, 1), recipe)
    _, said = second.communicate(timeout=600)
    assert second.returncode == 2 and "OutputError: " in said
    assert f"process {first.pid}" in said or "is finished" in said  # the first may end before the second looks
    first.kill()
    first.communicate()
