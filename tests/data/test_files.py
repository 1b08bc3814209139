from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet.base.errors import DataError
from lorikeet.data import files
from lorikeet.data.files import read_rows, source_sha256

ROWS = [{"a": "x", "b": 'ü\n"quoted", {brace} [list]'}, {"a": "日本", "b": "\\ud83d"}, {"a": "", "b": "}\u2028]"}]


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def rows(path: Path) -> list[dict]:
    return [row for row, _ in read_rows(path)]


def csv_text(table: list[dict]) -> str:
    quoted = [",".join('"' + row[key].replace('"', '""') + '"' for key in ("a", "b")) for row in table]
    return "a,b\n" + "\n".join(quoted) + "\n"


CONTENTS = {
    ".json": json.dumps(ROWS),
    "-pretty.json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "-data.json": json.dumps({"version": 1, "meta": {"data": []}, "data": ROWS, "after": [1, {"x": 2}]}),
    ".jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n",
    ".csv": csv_text(ROWS),
}


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_every_kind_gives_the_same_rows(tmp_path: Path, name: str, gz: str, bom: str) -> None:
    assert rows(write(tmp_path / f"x{name}{gz}", bom + CONTENTS[name])) == ROWS


@pytest.mark.parametrize("gz", [False, True])
def test_parquet(tmp_path: Path, gz: bool) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    if gz:
        path = write(tmp_path / "x.parquet.gz", path.read_bytes())
    assert rows(path) == ROWS


def test_text_that_a_parquet_file_calls_bytes_is_text(tmp_path: Path) -> None:
    """Older writers do, and nothing else would tell it from text in the rows; an image stays bytes."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    said = {"text": "naïve 漢字".encode(), "turns": [{"content": b"hi", "image": b"\x89PNG\xff"}], "none": None}
    pq.write_table(pa.Table.from_pylist([said]), tmp_path / "x.parquet")
    expected = {"text": "naïve 漢字", "turns": [{"content": "hi", "image": b"\x89PNG\xff"}], "none": None}
    assert rows(tmp_path / "x.parquet") == [expected]


def test_txt_one_row_per_non_empty_line(tmp_path: Path) -> None:
    found = list(read_rows(write(tmp_path / "x.txt", "one\r\n\n  \n two \n")))
    assert [(row["text"], origin.row, origin.line) for row, origin in found] == [("one", 0, 1), (" two ", 1, 4)]


def test_origins_name_lines_where_rows_have_lines(tmp_path: Path) -> None:
    def lines(name: str, content: str) -> list[int | None]:
        return [origin.line for _, origin in read_rows(write(tmp_path / name, content))]

    assert lines("pretty.json", json.dumps(ROWS, indent=2)) == [2, 6, 10]
    assert lines("oneline.json", json.dumps(ROWS)) == [None, None, None]
    assert lines("x.jsonl", '{"a": 1}\n\n{"a": 2}\n') == [1, 3]
    assert lines("x.csv", 'a,b\n"1\n2",x\n3,y\n') == [2, 4]


@given(
    table=st.lists(st.dictionaries(st.text(max_size=4), st.text() | st.integers() | st.lists(st.text())), min_size=1),
    indent=st.sampled_from([None, 0, 2]),
    block=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_json_streams_whatever_the_block_size(tmp_path_factory, table: list, indent: int | None, block: int) -> None:
    path = write(tmp_path_factory.mktemp("j") / "x.json", json.dumps(table, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_BLOCK_BYTES", block)
        assert rows(path) == table


def test_advance_counts_every_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", "".join(f'{{"a": {number}}}\n' for number in range(50000)))
    seen: list[int] = []
    assert sum(1 for _ in read_rows(path, seen.append)) == 50000
    assert sum(seen) == path.stat().st_size and len(seen) < 1000


BROKEN = {
    "broken in the middle": ("x.json", '[\n {"a": 1},\n {"a": 2,}\n]', ["x.json:3", "column"]),
    "cut off": ("x.json", '[{"a": 1}, {"a": "long', ["x.json:1", "column 18"]),
    "no comma": ("x.json", '[{"a": 1}\n {"a": 2}]', ["x.json:2", "expected , or ]"]),
    "more behind": ("x.json", '[{"a": 1}] [1]', ["more behind the end"]),
    "an object": ("x.json", '{"rows": [], "other": 1}', ["must be a list of rows", "rows other", ".jsonl"]),
    "jsonl in json": ("x.json", '{"a": 1}\n{"a": 2}\n', [".jsonl"]),
    "a bare number": ("x.json", "[1, 2]", ["row 0", "must be an object"]),
    "not even a list": ("x.json", "hello", ["x.json:1", "expected ["]),
    "broken line": ("x.jsonl", '{"a": 1}\n{"a": }\n', ["x.jsonl:2", "column 7"]),
    "a list in a line": ("x.jsonl", '{"a": 1}\n[1]\n', ["x.jsonl:2", "must be an object"]),
    "bad bytes in a line": ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ["x.jsonl:2", "0xff", "byte 16"]),
    "bad bytes in json": ("x.json", b'[\n{"a": "\xe9"}]', ["x.json:2", "0xe9", "byte 9"]),
    "half a character at the end": ("x.json", b'[{"a": "\xe9', ["not UTF-8", "byte 8"]),
    "too many cells": ("x.csv", "a,b\n1,2\n1,2,3\n", ["x.csv:3", "3 values", "2: a b"]),
    "too few cells": ("x.csv", "a,b\n1\n", ["x.csv:2", "1 values"]),
    "open quote": ("x.csv", 'a,b\n1,"2\n', ["x.csv:2", "broken CSV"]),
    "only a header": ("x.csv", "a,b\n", ["no rows"]),
    "empty list": ("x.json", "[]", ["no rows"]),
    "empty file": ("x.jsonl", "", ["empty", "0 bytes"]),
    "blank file": ("x.txt", " \n\n", ["no rows"]),
    "unknown ending": ("x.xml", "<a/>", ["what kind of file", ".xml"]),
    "not parquet": ("x.parquet", "hello", ["not a readable parquet file"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_say_where(tmp_path: Path, case: str) -> None:
    name, content, expected = BROKEN[case]
    with pytest.raises(DataError) as caught:
        rows(write(tmp_path / name, content))
    message = str(caught.value)
    assert all(part in message for part in expected), message
    assert len(message.split("\n")) <= 4


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "alpaca_en.json", "[]")
    with pytest.raises(DataError) as caught:
        rows(tmp_path / "alpaca_em.json")
    assert "no such file" in str(caught.value) and "alpaca_en.json" in str(caught.value)
    with pytest.raises(DataError, match="is a folder"):
        rows(tmp_path)


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    with pytest.raises(DataError, match="gzip"):
        rows(path)
    path.write_bytes(b"plain text")
    with pytest.raises(DataError, match="gzip"):
        rows(path)


def test_sha256_is_the_files(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.txt", "x"), write(tmp_path / "b.txt", "y")
    assert source_sha256(a) != source_sha256(b) and len(source_sha256(a)) == 64
