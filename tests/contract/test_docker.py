"""The Dockerfiles, which no test builds: every path they copy is there, and every extra they install exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def instructions(file: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def test_there_are_two() -> None:
    assert [file.name for file in FILES] == ["serve.Dockerfile", "train.Dockerfile"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_is_copied_exists(file: Path) -> None:
    ignored = {line.strip() for line in (ROOT / ".dockerignore").read_text().splitlines()}
    copied = [word for name, rest in instructions(file) if name == "COPY" for word in rest.split()[:-1]]
    assert {"pyproject.toml", "lorikeet"} <= set(copied)
    for path in copied:
        assert (ROOT / path).exists() and path not in ignored, path
    readme, licence = (re.search(pattern, PYPROJECT) for pattern in (r'readme = "(.+)"', r'license-files = \["(.+)"\]'))
    assert readme and licence and {readme[1], licence[1]} <= set(copied), "the build reads them"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_is_installed_exists(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    named = re.findall(r'"\.\[([a-z_,-]+)\]"', text) + re.findall(r'ARG EXTRAS="([^"]+)"', text)
    assert named
    for extra in ",".join(named).split(","):
        assert re.search(rf"^{re.escape(extra)} = \[", PYPROJECT, re.MULTILINE), extra
    assert re.search(r'"(torch[^"]+)"', PYPROJECT)[1] in text  # type: ignore[index]
    assert {"ARG", "USER", "ENTRYPOINT"} <= {name for name, _ in instructions(file)}
    assert {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "ENV", "EXPOSE", "ENTRYPOINT", "CMD"} >= {
        name for name, _ in instructions(file)
    }
