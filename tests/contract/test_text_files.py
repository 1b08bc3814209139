"""Text files are UTF-8 because the code says so, and not because of the machine it runs on."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import source

ENCODING = {"read_text": 0, "write_text": 1, "open": 2}  # which argument says it, where it has no name


def unsaid(tree: ast.Module) -> Iterator[int]:
    """The lines of calls `path.read_text()` and the like that leave the encoding to the machine."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or call.func.attr not in ENCODING:
            continue
        named = {keyword.arg for keyword in call.keywords}
        if "encoding" in named or len(call.args) > ENCODING[call.func.attr]:
            continue
        mode = call.args[0] if call.args else ast.Constant("r")
        # `open` of archives, of the system and of an address takes no mode first
        other = not isinstance(mode, ast.Constant) or not isinstance(mode.value, str) or "b" in mode.value
        if call.func.attr != "open" or not other:
            yield call.lineno


@pytest.mark.parametrize("path", source.files(), ids=source.name)
def test_the_encoding_of_text_is_said(path: Path) -> None:
    assert list(unsaid(source.tree(path))) == []


@pytest.mark.parametrize("code", ["p.read_text()", "p.write_text(a)", "p.open()", "p.open('a')", "p.open('w', 1)"])
def test_the_rule_can_fail(code: str) -> None:
    assert list(unsaid(ast.parse(code))) == [1]


@pytest.mark.parametrize("code", ["p.read_text('utf-8')", "p.write_text(a, 'utf-8')", "p.open('rb')", "zip.open(name)"])
def test_what_it_lets_pass(code: str) -> None:
    assert list(unsaid(ast.parse(code))) == []
