"""Trackers are told what metrics.jsonl says, and nothing they do ends a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lorikeet import config
from lorikeet.base.errors import Interrupted, RecipeError
from lorikeet.train import tracking
from lorikeet.train.metrics import Metrics
from lorikeet.train.trackers._contract import About, Row, Session, Tracker
from lorikeet.train.tracking import told

SEEN: list[Any] = []
HANG, HANGS = threading.Event(), threading.Event()  # what the one that hangs waits for; that it does


class Listening(Tracker):
    """Hears everything, and fails where it is told to."""

    fails: str = "never"
    error: type[BaseException] = RuntimeError

    def start(self, about: About, past: Sequence[Row]) -> Session:
        SEEN.append(("start", about.id, [row["step"] for row in past]))
        if self.fails == "start":
            raise self.error("no server")
        return _Heard(self)


class _Heard:
    def __init__(self, options: Listening):
        self.options = options

    def row(self, row: Row) -> None:
        SEEN.append(row["step"])
        if self.options.fails == "row" and row["step"] == 2:
            raise self.options.error("gone\naway")
        if self.options.fails == "hang" and row["step"] == 2:
            HANGS.set()
            HANG.wait(300)

    def close(self, *, finished: bool) -> None:
        SEEN.append(("close", finished))
        if self.options.fails == "close":
            raise self.options.error("late")


@pytest.fixture(autouse=True)
def forget() -> None:
    SEEN.clear()
    HANG.clear()
    HANGS.clear()


def run(folder: Path, *trackers: Tracker, steps: Sequence[int] = (1, 2, 3)) -> list[int]:
    with told(folder, trackers, "abcd", {}) as metrics:
        for step in steps:
            metrics.append({"kind": "train", "step": step})
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_tracker_is_told_everything(tmp_path: Path) -> None:
    Metrics(tmp_path / "metrics.jsonl").append({"kind": "eval", "step": 0})
    assert run(tmp_path, Listening()) == [0, 1, 2, 3]
    assert SEEN == [("start", "abcd", [0]), 1, 2, 3, ("close", True)]


def test_an_interrupted_run_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), told(tmp_path, [Listening()], "abcd", {}):
        raise ValueError("stop")
    assert SEEN[-1] == ("close", False)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, OSError])
@pytest.mark.parametrize("fails", ["start", "row", "close"])
def test_a_tracker_that_fails_ends_nothing(
    fails: str, error: type[BaseException], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, Listening(fails=fails, error=error), Listening()) == [1, 2, 3]
    said = [line for line in capfd.readouterr().err.splitlines() if "no longer told" in line]
    assert len(said) == 1 and error.__name__ in said[0] and "metrics.jsonl has all rows" in said[0]
    heard = [one for one in SEEN if one == 3]
    assert len(heard) == (1 if fails != "close" else 2)  # the other one heard everything


def test_a_tracker_that_hangs_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.1)
    assert run(tmp_path, Listening(fails="hang")) == [1, 2, 3]
    assert HANGS.wait(300) and SEEN == [("start", "abcd", []), 1, 2]
    assert "did not end within 0.1 s" in capfd.readouterr().err
    HANG.set()


def test_a_tracker_that_falls_behind_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "MOST_WAITING", 3)
    assert run(tmp_path, Listening(fails="hang"), steps=range(1, 21)) == list(range(1, 21))
    assert capfd.readouterr().err.count("3 rows behind") == 1
    HANG.set()


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted])
def test_ctrl_c_while_a_tracker_starts(error: type[BaseException], tmp_path: Path) -> None:
    """Interrupted is what TERM raises there, and no failure of the tracker's."""
    with pytest.raises(error):
        run(tmp_path, Listening(fails="start", error=error))


def load(tmp_path: Path, report_to: str) -> list[Tracker]:
    (tmp_path / "r.yaml").write_text(
        f"output_dir: x\nmodel: {{path: m}}\ndata: {{train: [a.json]}}\ntrain: {{report_to: {report_to}}}\n"
    )
    return list(config.load(tmp_path / "r.yaml").train.report_to)


@pytest.mark.parametrize(
    ("written", "kinds"),
    [
        ("none", []),
        ("[none]", []),
        ("null", []),
        ("tensorboard", ["tensorboard"]),
        ("[tensorboard, {kind: wandb, project: x}]", ["tensorboard", "wandb"]),
        ("{kind: trackio}", ["trackio"]),
    ],
)
def test_ways_to_write_it(tmp_path: Path, written: str, kinds: list[str]) -> None:
    found = load(tmp_path, written)
    assert [one.model_dump()["kind"] for one in found] == kinds
    assert load(tmp_path, json.dumps([one.model_dump(mode="json") for one in found])) == found


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("tensorbord", "there is no kind 'tensorbord'"),
        ("all", "there is no kind 'all'"),
        ("3", "has the wrong type"),
        ("[{project: x}]", "a 'kind'"),
        ("[{kind: wandb, projekt: x}]", "there is no such option"),
        ("[{kind: wandb, mode: sometimes}]", "is not one of the choices"),
        ("[jsonl]", "is missing"),
        ("[{kind: jsonl, path: folder}]", "a .jsonl file"),
        ("[{kind: trackio, project: 'a/b'}]", "project"),
        ("[./mine.py]", "no such file"),
    ],
)
def test_bad_trackers(tmp_path: Path, written: str, said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load(tmp_path, written)
    assert said in str(raised.value) and ":4)" in str(raised.value.given)
