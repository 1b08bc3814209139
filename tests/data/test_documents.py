from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet.base.errors import DataError
from lorikeet.data.documents import documents
from lorikeet.data.files import read_rows
from lorikeet.data.formats.auto import Auto
from lorikeet.data.formats.text import Text

BOOK = "# One\r\n\r\nfirst line\nsecond line\n \n\n\nlast\n"


def read(path: Path, sample_by: str | None = None) -> list[tuple[str, int | None]]:
    return [(row["text"], origin.line) for row, origin in read_rows(path, sample_by=sample_by)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["book.txt", "book.md", "book.txt.gz"])
def test_lines_paragraphs_documents(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(BOOK.encode()) if name.endswith(".gz") else BOOK.encode())
    lines = [("# One", 1), ("first line", 3), ("second line", 4), ("last", 8)]
    paragraphs = [("# One", 1), ("first line\nsecond line", 3), ("last", 8)]
    whole = [(BOOK.replace("\r\n", "\n"), 1)]
    assert read(path, "line") == lines
    assert read(path, "paragraph") == paragraphs
    assert read(path, "document") == whole
    assert read(path) == (whole if ".md" in name else lines)


def test_the_format_says_what_a_document_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "book.txt"
    path.write_text(BOOK)
    rows = [row for row, _ in Text(sample_by="paragraph").rows(str(path))]
    assert len(rows) == 3
    Auto().settle(rows, str(path))
    said = capsys.readouterr().err
    assert "format text" in said and "each line is a document" in said and "sample_by: document" in said
    Text(sample_by="line").settle(rows, str(path))
    Text().settle(rows, "rows.jsonl")
    assert capsys.readouterr().err == ""


def test_a_stride_rides_along() -> None:
    assert Text(stride=3).read({"text": "x"}, origin=None).stride == 3  # type: ignore[arg-type]


def test_files_of_white_space_and_odd_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.md"
    path.write_text(" \n\n\t\n")
    with pytest.raises(DataError, match="no rows"):
        read(path)
    path.write_bytes(b"good\n\xff\n")
    with pytest.raises(DataError, match=r"x.md:2: not UTF-8"):
        read(path)


@given(text=st.text("ab \n\r\t", max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_visible_character_is_lost_or_doubled(text: str) -> None:
    lines = list(enumerate(text.splitlines(keepends=True), 1))
    for sample_by in ("line", "paragraph", "document"):
        found = [row["text"] for row, _ in documents(lines, "f", sample_by)]  # type: ignore[arg-type]
        assert "".join("".join(found).split()) == "".join(text.split())
        assert all(one.strip() for one in found)
        assert [origin.row for _, origin in documents(lines, "f", sample_by)] == list(range(len(found)))  # type: ignore[arg-type]
