"""A run's folder: whole checkpoints, retention, the lock, and what is refused."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import pytest
import torch
from safetensors.torch import save_file

from lorikeet.base import tensor_file
from lorikeet.base.errors import CheckpointError, OutputError
from lorikeet.train import state
from lorikeet.train.loop import train
from lorikeet.train.optim import Stepper
from lorikeet.train.options import TrainOptions
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


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


FILES = ("adapter_config.json", "adapter_model.safetensors", "lorikeet.json", "optimizer.safetensors", "state.json")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoints 2 and 4. Read it only."""
    folder = tmp_path_factory.mktemp("two")
    train(run_in(folder, steps=4), TrainOptions(**OPTIONS, save_steps=2))
    return folder


@pytest.mark.parametrize("damage", ["flipped", "half", "empty", "gone"])
@pytest.mark.parametrize("name", [*FILES, "complete.json"])
def test_each_file_s_damage_is_seen_and_the_checkpoint_before_is_taken(
    two: Path, name: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(two, tmp_path / "run"))
    assert sorted(path.name for path in (run / "checkpoint-4").iterdir()) == sorted([*FILES, "complete.json"])
    file = run / "checkpoint-4" / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"flipped": flipped(content), "half": content[: len(content) // 2], "empty": b""}[damage])
    assert latest_checkpoint(run) == run / "checkpoint-2"
    assert "checkpoint-4 is damaged or incomplete: skipped" in " ".join(capsys.readouterr().err.split())


def test_a_list_without_files_is_no_list(two: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(two, tmp_path / "run"))
    (run / "checkpoint-4" / "complete.json").write_text("{}")
    assert latest_checkpoint(run) == run / "checkpoint-2"


def test_damaged_checkpoints_of_later_steps_push_no_good_one_out(tmp_path: Path) -> None:
    options = TrainOptions(**OPTIONS, save_steps=2, save_total_limit=2)
    train(run_in(tmp_path), options)
    assert checkpoints(tmp_path) == [6, 7]
    shutil.copytree(tmp_path / "checkpoint-6", tmp_path / "checkpoint-4")  # stands for one that is whole
    for step in (6, 7):
        (tmp_path / f"checkpoint-{step}" / "state.json").write_text("")
    stepper = Stepper({"a": torch.nn.Parameter(torch.ones(1))}, TrainOptions())
    save_checkpoint(tmp_path, 5, lambda folder: None, stepper, {}, 1)
    assert checkpoints(tmp_path) == [5] and intact(tmp_path / "checkpoint-5")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_reads_back_differently_is_refused_and_nothing_older_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path, steps=2)
    train(run, TrainOptions(**OPTIONS, save_steps=1))
    stepper = Stepper(run.parameters, TrainOptions())
    stepper.state_dict = lambda: {"a/exp_avg": torch.ones(3)}  # type: ignore[method-assign]
    other = {"a/exp_avg": torch.zeros(3)}

    def write(tensors: dict[str, torch.Tensor], file: Path, **how: object) -> None:
        save_file(other if "a/exp_avg" in tensors else tensors, file, **how)

    monkeypatch.setattr(tensor_file, "save_file", write)
    with pytest.raises(CheckpointError, match="reads back differently"):
        save_checkpoint(tmp_path, 3, run.save_adapter, stepper, {}, 1)
    assert checkpoints(tmp_path) == [1, 2] and intact(tmp_path / "checkpoint-2")


def test_everything_is_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order: each file, the folder that lists them, the name, the folder that lists the name."""
    seen: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        seen.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        seen.append(f"{path.name} -> {Path(target).name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    run = run_in(tmp_path / "run")
    save_checkpoint(run.folder, 1, run.save_adapter, Stepper(run.parameters, TrainOptions()), {}, None)
    rename = next(i for i, what in enumerate(seen) if what.endswith("-> checkpoint-1"))
    files, temporary = seen[: rename - 1], seen[rename - 1]
    assert sorted(files) == sorted([*FILES, "complete.json"])
    assert temporary == seen[rename].split(" -> ")[0] and temporary.startswith(".checkpoint-1.")
    assert seen[rename + 1 :] == ["run"]


def test_the_lock_is_another_s_in_another_thread_too(tmp_path: Path) -> None:
    found: list[BaseException] = []

    def second() -> None:
        try:
            with locked(tmp_path / "run"):
                pass
        except OutputError as error:
            found.append(error)

    with locked(tmp_path / "run"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(found) == 1


def test_who_looks_whether_a_run_is_there_keeps_none_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lorikeet runs` and `--detach` take the lock for a moment to see whether somebody has it."""
    monkeypatch.setattr(state, "LOOKING_SECONDS", 300)  # the thread that looks may be kept waiting itself
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "metrics.jsonl").touch()
    with (tmp_path / "run" / ".lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        away = threading.Timer(0.1, lambda: fcntl.flock(looking, fcntl.LOCK_UN))
        away.start()
        with locked(tmp_path / "run"):
            away.join()


def test_a_lock_whose_folder_was_just_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails at once removes its new folder: who has opened the lock by then would hold a file without a
    name, and a third run another one."""
    folder, flock, taken = tmp_path / "run", fcntl.flock, []

    def late(file: IO[str], how: int) -> None:
        if not taken:
            shutil.rmtree(folder)
        taken.append(how)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(folder):
        assert (folder / ".lock").read_text() == str(os.getpid())
        with pytest.raises(OutputError, match="another run"), locked(folder):
            pass


def test_a_killed_process_holds_no_lock_even_where_a_child_of_it_lives_on(tmp_path: Path) -> None:
    program = (
        "import os, sys, time\nfrom pathlib import Path\nfrom lorikeet.train.state import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n        time.sleep(600)\n"
        "    print(child, flush=True)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with pytest.raises(OutputError, match="another run"), locked(tmp_path / "run"):
            pass
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        with locked(tmp_path / "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OutputError, match="cannot be locked"), locked(tmp_path / "run"):
        pass
