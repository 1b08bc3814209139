"""What the demo says at its end: commands that are there, and the README shows the same."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from lorikeet.cli.main import run_command
from lorikeet.demo import run
from lorikeet.demo.run import next_steps

STEPS = next_steps(Path("runs/demo"), Path("runs/demo-merged"))


@pytest.mark.parametrize("line", STEPS[1:])
def test_each_next_step_is_a_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, about = re.split(r" {4,}", line.strip())
    first, *words = shlex.split(command)
    options = [word for word in words if word.startswith("-")]
    names = words[: next(at for at, word in enumerate(words) if "/" in word)]
    assert (first, bool(about)) == ("lorikeet", True) and run_command([*names, "--help"]) == 0
    assert all(option in capsys.readouterr().out for option in options)


def test_the_next_steps_name_talking_serving_and_exporting() -> None:
    assert {"chat", "serve", "export", "train"} <= {line.split()[1] for line in STEPS[1:]}


def test_the_readme_shows_the_next_steps() -> None:
    assert "\n".join(STEPS) in (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_command_is_named_as_it_can_be_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make demo` calls it by its path, in a .venv that nobody has activated."""
    monkeypatch.setattr(sys, "argv", [".venv/bin/lorikeet", "demo"])
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert run._command() == ".venv/bin/lorikeet"
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/lorikeet")
    assert run._command() == "lorikeet"
