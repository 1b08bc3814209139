"""Folders that are whole or not there, and what killed processes leave of them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lorikeet.base.files import new_folder

KILLED = """
import os, pathlib, signal, sys
from lorikeet.base.files import new_folder
with new_folder(pathlib.Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print("there", flush=True)
    sys.stdin.read()
"""


def killed_at_work(path: Path) -> subprocess.Popen[str]:
    """A process that is making `path`."""
    command = [sys.executable, "-c", KILLED, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next_and_a_living_one_s_is_not(tmp_path: Path) -> None:
    (tmp_path / ".made.mine").mkdir()  # not ours
    (tmp_path / ".made.too.making-12345678").mkdir()  # of another folder
    mine = names(tmp_path)
    process = killed_at_work(tmp_path / "made")
    [left] = set(names(tmp_path)) - set(mine)
    with new_folder(tmp_path / "made") as folder:
        (folder / "whole").write_text("whole")
    assert names(tmp_path) == sorted([*mine, left, "made"]), "that process lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with new_folder(tmp_path / "made") as folder:
        (folder / "again").write_text("whole")
        assert left not in names(tmp_path), "at once: its room may be needed"
    assert names(tmp_path) == sorted([*mine, "made"]) and names(tmp_path / "made") == ["again"]


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = killed_at_work(tmp_path / "made")
    process.kill()
    process.wait()
    [left] = names(tmp_path)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with new_folder(tmp_path / "made") as folder:
        (folder / "whole").write_text("whole")
    assert names(tmp_path) == sorted([left, "made"])


def test_a_folder_that_fails_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ValueError), new_folder(tmp_path / "made") as folder:
        (folder / "half").write_text("half")
        raise ValueError
    assert names(tmp_path) == []
