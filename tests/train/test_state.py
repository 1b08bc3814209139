"""A run's folder: whole checkpoints, retention, the lock, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lorikeet.base.errors import OutputError
from lorikeet.train.loop import TrainOptions, train
from lorikeet.train.optim import Stepper
from lorikeet.train.state import (
    check_folder,
    checkpoints,
    empty_folder,
    intact,
    latest_checkpoint,
    locked,
    save_checkpoint,
)
from train.runs import OPTIONS, run_in


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    train(run_in(tmp_path), TrainOptions(**OPTIONS, save_steps=2, save_total_limit=2))
    assert checkpoints(tmp_path) == [6, 7]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-7"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".checkpoint")]


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "no list", "list of another kind"])
def test_every_damage_is_seen(damage: str, tmp_path: Path) -> None:
    train(run_in(tmp_path, steps=1), TrainOptions(**OPTIONS))
    folder = tmp_path / "checkpoint-1"
    assert intact(folder)
    file, complete = folder / "optimizer.safetensors", folder / "complete.json"
    if damage == "changed":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "gone":
        file.unlink()
    elif damage == "no list":
        complete.unlink()
    else:
        complete.write_text("[]")
    assert not intact(folder) and latest_checkpoint(tmp_path) is None


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    stepper = Stepper({"a": torch.nn.Parameter(torch.ones(1))}, TrainOptions())

    def full_disk(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        save_checkpoint(tmp_path, 1, full_disk, stepper, {}, None)
    assert list(tmp_path.iterdir()) == []


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(OutputError, match="another run"), locked(tmp_path / "run"):
        pass
    with locked(tmp_path / "run"):
        pass


def test_which_folders_are_refused(tmp_path: Path) -> None:
    check_folder(tmp_path / "new", overwrite=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        check_folder(tmp_path / "file", overwrite=False)
    with pytest.raises(OutputError, match="not a run's"):
        check_folder(tmp_path, overwrite=True)
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").write_text("")
    check_folder(run, overwrite=False)
    (run / "recipe.yaml").write_text("")
    check_folder(run, overwrite=False)  # begun, not finished: it goes on
    (run / "summary.json").write_text("{}")
    with pytest.raises(OutputError, match="is finished"):
        check_folder(run, overwrite=False)
    check_folder(run, overwrite=True)
    (run / "checkpoint-3").mkdir()
    (run / "checkpoint-3" / "state.json").write_text(json.dumps({}))
    empty_folder(run)
    assert [path.name for path in run.iterdir()] == [".lock"]
