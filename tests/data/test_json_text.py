"""Whole numbers of any size, and how deep a row may be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Origin
from lorikeet.data.files import read_rows
from lorikeet.data.formats.messages import Messages
from lorikeet.data.json_text import DEEPEST, is_too_deep, loads
from lorikeet.data.steps._values import from_line, to_line

LARGE = 265252859812191058636308480000000  # 30!
VALUES: list[Any] = [LARGE, -LARGE, {"a": [1, {"b": LARGE}]}, 2**63, 2**64, 1e300, 1.5, -0.0, "9" * 40, None, [], {}]


@pytest.mark.parametrize("value", VALUES)
def test_a_number_is_what_it_was(value: Any) -> None:
    back = loads(json.dumps(value))
    assert back == value and json.dumps(back) == json.dumps(value)
    assert from_line(to_line([value])) == [value]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_rows_keep_their_numbers(name: str, tmp_path: Path) -> None:
    row = {"id": LARGE, "n": 1e30}
    text = json.dumps([row] if ".jsonl" not in name else row).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    ((read, _),) = read_rows(tmp_path / name)
    assert read == row and type(read["n"]) is float


@pytest.mark.parametrize("as_text", [True, False])
def test_the_argument_of_a_call_is_learned_as_it_is(as_text: bool) -> None:
    arguments = {"n": LARGE}
    call = {"function": {"name": "half", "arguments": json.dumps(arguments) if as_text else arguments}}
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    (found,) = Messages().read(loads(json.dumps(row)), Origin("a", 0)).messages[1].tool_calls
    assert found["function"]["arguments"] == arguments


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_a_row_has_so_many_levels() -> None:
    assert not is_too_deep(loads(nested(DEEPEST)))
    with pytest.raises(orjson.JSONDecodeError, match="too deeply"):
        loads(nested(DEEPEST + 1))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("levels", [300, 500, 900, 1010])
def test_a_deep_row_is_one_clear_error(name: str, levels: int, tmp_path: Path) -> None:
    row = '{"text": "a", "more": ' + nested(levels) + "}"
    (tmp_path / name).write_text(row if name.endswith("l") else f"[{row}]")
    with pytest.raises(DataError, match="nested too deeply"):
        list(read_rows(tmp_path / name))


def test_a_number_that_python_does_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a"}, {"text": "b", "n": ' + "9" * 5000 + "}]")
    with pytest.raises(DataError, match=r"a\.json:1: broken JSON"):
        list(read_rows(tmp_path / "a.json"))


def test_what_is_written_every_reader_reads() -> None:
    value = {"id": 2**70, "score": float("nan"), "title": "cut \ud83d", "fine": "\U0001f600 \u05d0", "\ud83d": [1]}
    line = to_line(value)
    assert orjson.loads(line)["title"] == "cut \ufffd", "and not only Python's"
    assert from_line(line) == {
        "id": 2**70, "score": None, "title": "cut \ufffd", "fine": "\U0001f600 \u05d0", "\ufffd": [1],
    }  # fmt: skip


def test_bytes_are_written_in_base64() -> None:
    """A column of pictures, say; Python's spelling of it, b'...', nobody could read back."""
    assert from_line(to_line({"image": b"\x89PNG\xff", "more": [b""]})) == {"image": "iVBOR/8=", "more": [""]}
