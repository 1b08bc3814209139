"""Each tracker's own record holds the rows of metrics.jsonl, once, also when the run went on after a stop."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import TypeAdapter

from lorikeet.base.errors import MissingExtra, OutputError
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.train.trackers._contract import About, Row, Tracker, scalars
from lorikeet.train.trackers.jsonl import Jsonl
from lorikeet.train.trackers.tensorboard import TensorBoard
from lorikeet.train.trackers.trackio import Trackio
from lorikeet.train.trackers.wandb import Wandb, _mode
from train.trackers import events


def row(step: int, **changes: Any) -> Row:
    return {"kind": "train", "step": step, "loss": 1 / step, "learning_rate": 1e-4} | changes


ROWS = [row(1), row(2), {"kind": "eval", "step": 2, "loss": 0.75, "tokens": 90}, row(3)]


@pytest.fixture
def about(tmp_path: Path) -> About:
    (tmp_path / "first").mkdir()
    return About(tmp_path / "first", "abcd1234", {"model": {"path": "tiny"}, "train": {"seed": 0}})


def tell(tracker: Tracker, about: About, past: list[Row], rows: list[Row], *, finished: bool = True) -> None:
    session = tracker.start(about, past)
    for one in rows:
        session.row(one)
    session.close(finished=finished)


def test_the_kinds() -> None:
    assert kinds("lorikeet.train.trackers") == ["jsonl", "tensorboard", "trackio", "wandb"]


def test_scalars_are_finite_numbers() -> None:
    found = scalars(
        {"kind": "eval", "step": 3, "loss": 0.5, "by_role": {"user": 0.25, "n": {"x": 1}}, "bad": float("nan")}
        | {"none": None, "flag": True, "text": "a", "list": [1]}
    )
    assert found == {"eval/loss": 0.5, "eval/by_role/user": 0.25, "eval/by_role/n/x": 1.0}


def test_tensorboard_reads_back(about: About) -> None:
    tell(TensorBoard(), about, [], ROWS)
    found = events.scalars(about.folder / "tensorboard")
    assert found["train/loss"] == [(1, 1.0), (2, 0.5), (3, 0.33333)]
    assert found["eval/loss"] == [(2, 0.75)] and found["eval/tokens"] == [(2, 90.0)]
    texts = [str(event) for event in events.events(about.folder / "tensorboard")]
    assert any("path: tiny" in text for text in texts)


def test_tensorboard_goes_on_without_twins(about: About) -> None:
    """Killed behind step 3 with its last checkpoint at 2: step 3 is done again, and 4 follows."""
    tell(TensorBoard(), about, [], ROWS, finished=False)
    tell(TensorBoard(), about, ROWS[:3], [row(3), row(4)])
    folder = about.folder / "tensorboard"
    assert [step for step, _ in events.scalars(folder)["train/loss"]] == [1, 2, 3, 4]
    assert events.scalars(folder)["eval/loss"] == [(2, 0.75)]
    # what an open TensorBoard goes by: everything from step 0 on that it had is void
    assert any(event.HasField("session_log") and event.session_log.status == 1 for event in events.events(folder))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_tensorboard_on_a_full_disk_raises_and_waits_for_nobody(about: About) -> None:
    session: Any = TensorBoard().start(about, [])
    session.writer._py_recordio_writer._writer = Path("/dev/full").open("wb")  # noqa: SIM115
    session.due = 0
    with pytest.raises(OSError, match="No space left"):
        session.row(row(1))


def test_tensorboard_in_another_folder(about: About, tmp_path: Path) -> None:
    tell(TensorBoard(logging_dir=tmp_path / "elsewhere"), about, [], ROWS)
    assert events.scalars(tmp_path / "elsewhere") and not (about.folder / "tensorboard").exists()


def test_jsonl(about: About, tmp_path: Path) -> None:
    tracker = Jsonl(path=tmp_path / "shared" / "a.jsonl")
    tracker.check()
    tell(tracker, about, [], ROWS)
    tell(tracker, about, ROWS[:3], [row(3), row(4)])
    lines = (tmp_path / "shared" / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [*ROWS[:3], row(3), row(4)]


def test_jsonl_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written to"):
        Jsonl(path=tmp_path / "file" / "a.jsonl").check()


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_named_with_its_extra(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, {"tensorboard": "tensorboardX"}.get(kind, kind), None)
    with pytest.raises(MissingExtra, match=rf"lorikeet-llm\[{kind}\]"):
        kind_class("lorikeet.train.trackers", Tracker, kind).model_validate({}).check()


@pytest.mark.parametrize(
    ("options", "environment", "key", "mode"),
    [
        ({}, {}, False, "offline"),
        ({}, {"WANDB_API_KEY": "k" * 40}, False, "online"),
        ({}, {}, True, "online"),
        ({"mode": "offline"}, {}, True, "offline"),
        ({"mode": "online"}, {}, False, "offline"),  # it would ask for a key
        ({"mode": "online"}, {}, True, "online"),
        ({"mode": "online"}, {"WANDB_MODE": "offline"}, True, "offline"),
        ({}, {"WANDB_MODE": "disabled"}, True, "disabled"),
    ],
)
def test_wandb_is_online_only_with_a_key(
    options: dict[str, str],
    environment: dict[str, str],
    key: bool,
    mode: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if key:
        (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    assert _mode(TypeAdapter(Wandb).validate_python(options)) == mode


class FakeWandb(types.ModuleType):
    """What we use of wandb; the real one is run where it is installed."""

    class Settings:
        model_fields: ClassVar = {"console": 0, "silent": 0, "a_later_one": 0}

        def __init__(self, **given: Any):
            self.given = given

    def __init__(self, held: int = 0):
        super().__init__("wandb")
        self.step, self.told, self.given, self.exit_code = held, [], {}, None

    def init(self, **given: Any) -> FakeWandb:
        self.given = given
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.told.append((step, sorted(values)))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_wandb_goes_on_with_what_the_server_lacks(about: About, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb(held=3)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_MODE", "online")
    tell(Wandb(project="p", tags=["a"]), about, ROWS[:3], [row(3), row(4)], finished=False)
    assert [step for step, _ in fake.told] == [3, 4] and fake.exit_code == 1
    assert (fake.given["id"], fake.given["resume"], fake.given["name"]) == ("abcd1234", "allow", "first")
    assert fake.given["settings"].given == {"console": "off", "silent": True}


def offline_rows(folder: Path) -> list[dict[str, Any]]:
    """The history of a wandb offline run, read from its file of records (checksum, length, type)."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("offline-run-*/run-*.wandb")
    data, at, found = file.read_bytes(), 7, []
    assert data[:4] == b":W&B" and len(data) < 32768  # one block, so no record is cut
    while at + 7 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 6], "little")
        record = wandb_internal_pb2.Record.FromString(data[at + 7 : at + 7 + length])
        at += 7 + length
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return found


def test_the_real_wandb_offline(about: About, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tell(Wandb(), about, [], ROWS, finished=False)
    tell(Wandb(), about, ROWS[:3], [row(3), row(4)])
    rows = offline_rows(about.folder / "wandb")
    assert [one["_step"] for one in rows] == [1, 2, 3, 4]
    assert rows[1]["eval/loss"] == 0.75 and rows[3]["train/loss"] == 0.25


def test_the_real_trackio(about: About, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trackio = pytest.importorskip("trackio")
    from trackio import sqlite_storage

    sqlite_storage.TRACKIO_DIR = tmp_path / "trackio"  # the package reads $TRACKIO_DIR once, at its import
    tell(Trackio(project="p"), about, [], ROWS, finished=False)
    tell(Trackio(project="p"), about, ROWS[:3], [row(3), row(4)])
    assert trackio is not None and not capfd.readouterr().out
    rows = sqlite_storage.SQLiteStorage.get_logs("p", "first-abcd1234")
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]
    assert [row["eval/loss"] for row in rows if "eval/loss" in row] == [0.75]
