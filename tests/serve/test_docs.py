"""What docs/serving.md shows works: its Python as it stands, and what its curl sends, on a server of the tiny model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import httpx
import pytest

from lorikeet.cli import serve as command
from serve.conftest import Running

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


def test_the_python_of_the_page_runs(served: Running, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block.replace(ADDRESS, served.url).replace('"notes"', '"tiny"'), "serving.md", "exec"), {})
    assert capsys.readouterr().out


def test_what_curl_sends_is_answered(served: Running) -> None:
    commands = re.findall(r"^\$ (curl (?:.*\\\n)*.*)", PAGE, re.MULTILINE)
    assert commands
    for words in map(shlex.split, (one.replace("\\\n", " ") for one in commands)):
        url = words[1].replace(ADDRESS, served.url)
        header, body = words[words.index("-H") + 1], words[words.index("-d") + 1].replace("notes", "tiny")
        name, _, value = header.partition(": ")
        assert httpx.post(url, content=body, headers={name: value}, timeout=300).status_code == 200


def test_every_option_that_the_page_names_is_the_command_s() -> None:
    names = set(re.findall(r"`(--[a-z-]+)", PAGE))
    source = Path(command.__file__).read_text(encoding="utf-8")
    assert len(names) > 8
    assert [name for name in names if f"{name.removeprefix('--').replace('-', '_')}:" not in source] == []
