"""What the end-to-end tests share: a folder to work in, recipes over the tiny model, commands, one finished run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lorikeet.base.yaml_lines import dump
from lorikeet.cli.main import run_command

LORIKEET = [sys.executable, "-m", "lorikeet.cli.main"]


@dataclass
class Result:
    """What a command line came to."""

    code: int
    out: str
    err: str


def settings(model: Path, data: Path | str, output: Path | str, changes: dict[str, Any]) -> dict[str, Any]:
    """A small recipe of four steps; `changes` are sections, merged key by key."""
    made: dict[str, Any] = {
        "output_dir": str(output),
        "model": {"path": str(model), "dtype": "float32", "device": "cpu", "threads": 1},
        "adapter": {"kind": "lora", "r": 4},
        "data": {"train": [str(data)], "validation": 4, "max_length": 128},
        "train": {"examples_per_step": 4, "max_steps": 4, "learning_rate": 0.01, "row_tokens": 256},
        "evaluate": {"samples": 1},
        "generate": {"max_new_tokens": 6},
    }
    for section, value in changes.items():
        old = made.get(section)
        made[section] = {**old, **value} if isinstance(value, dict) and isinstance(old, dict) else value
        if isinstance(made[section], dict):
            made[section] = {key: value for key, value in made[section].items() if value != "-"}
    return {key: value for key, value in made.items() if value != "-"}


class Place:
    """A test's folder, which is also the current one, with the tiny data in it."""

    def __init__(self, folder: Path, model: Path, capsys: pytest.CaptureFixture[str]):
        self.folder, self.model, self.capsys = folder, model, capsys

    def recipe(self, **changes: Any) -> Path:
        """Write recipe.yaml; "-" as a value removes the key."""
        path = self.folder / "recipe.yaml"
        path.write_text(dump(settings(self.model, "tiny.jsonl", "run", changes)))
        return path

    def line(self, text: str) -> str:
        """recipe.yaml:N of the first `text` in it."""
        before, found, _ = (self.folder / "recipe.yaml").read_text().partition(text)
        assert found, text
        return f"recipe.yaml:{(before + found).count(chr(10)) + 1}"

    def copy_model(self, name: str = "model") -> Path:
        """A copy of the tiny model that a test may damage."""
        return Path(shutil.copytree(self.model, self.folder / name))

    def run(self, *words: object) -> Result:
        """Run a command in this process."""
        self.capsys.readouterr()
        code = run_command([str(word) for word in words])
        captured = self.capsys.readouterr()
        return Result(code, captured.out, captured.err)

    def ok(self, *words: object) -> Result:
        """Run a command that must succeed."""
        result = self.run(*words)
        assert result.code == 0, result.err
        return result

    def refused(self, words: str | list[str], error: str, *facts: str, process: bool = False) -> str:
        """Run a command that must be refused: exit code 2, at most four lines, no traceback, nothing written.

        `error` begins the message (the word before the colon is the error's class); each of `facts` stands in it."""
        words = words.split() if isinstance(words, str) else words
        before = contents(self.folder)
        result = self.process(*words) if process else self.run(*words)
        said = "\n".join(result.err.splitlines())
        assert "Traceback" not in said and "is a fault of Lorikeet" not in said, said
        lines = said.splitlines()
        start = next((number for number, line in enumerate(lines) if re.match(r"[A-Z]\w+: ", line)), None)
        assert start is not None, said
        assert lines[start].startswith(error), said
        message = lines[start:]
        assert result.code == 2, (result.code, said)
        assert len(message) <= 4, said
        for line in message[1:]:
            assert line[:11].strip() in ("given", "allowed", "try"), line
        for fact in facts:
            assert fact in "\n".join(message), f"{fact!r} is not said:\n{said}"
        assert contents(self.folder) == before, "the folder was changed"
        assert leftovers() == [], "something half-written is left"
        return "\n".join(message)

    def process(self, *words: object, **options: Any) -> Result:
        """Run a command as a process of its own."""
        command = [*LORIKEET, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, timeout=500, **options)
        return Result(done.returncode, done.stdout, done.stderr)


def contents(folder: Path) -> dict[str, str]:
    """Every file (with its hash) and folder under `folder`, but not the lock, which names a process."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def leftovers() -> list[str]:
    """Temporary files and folders in the cache."""
    cache = Path(os.environ["XDG_CACHE_HOME"])
    return [str(path) for path in cache.rglob(".*") if path.name != ".lock"]


@pytest.fixture
def place(
    tmp_path: Path,
    tiny_model: Path,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Place:
    """See Place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "100")
    return Place(tmp_path, tiny_model, capsys)


@pytest.fixture(scope="session")
def finished(tiny_model: Path, rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of four steps, its data beside it. Read it only."""
    folder = tmp_path_factory.mktemp("finished")
    data = folder / "tiny.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "recipe.yaml"
    recipe.write_text(dump(settings(tiny_model, data, folder / "run", {"train": {"save_steps": 2}})))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        assert run_command(["train", str(recipe)]) == 0
    yield folder / "run"


@pytest.fixture
def copied_run(place: Place, finished: Path) -> Path:
    """A copy of the finished run that a test may damage."""
    return Path(shutil.copytree(finished, place.folder / "run"))


@pytest.fixture
def write(place: Place) -> Callable[[str, str | bytes], Path]:
    """write(name, content): a file in the test's folder."""

    def write_(name: str, content: str | bytes) -> Path:
        path = place.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_
