"""Rows out of data files, one at a time, each knowing where it stands.

Every reader streams, so a file larger than memory is fine. What cannot be read is answered with the line (and column
or byte) where it stands, because "invalid JSON" in a file of a million rows helps nobody.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import orjson

from lorikeet.base.errors import DataError, nearest
from lorikeet.base.extras import require
from lorikeet.base.files import sha256_file
from lorikeet.base.nouns import Origin
from lorikeet.data.documents import SampleBy, documents
from lorikeet.data.json_text import is_too_deep, loads, texts

Row = dict[str, Any]
Advance = Callable[[int], None]

EXTENSIONS = (".json", ".jsonl", ".csv", ".parquet", ".txt", ".md")
_BLOCK_BYTES = 1 << 20
_ADVANCE_BYTES = 1 << 18  # a progress bar need not move for every row


def read_rows(
    path: str | Path, advance: Advance | None = None, sample_by: SampleBy | None = None
) -> Iterator[tuple[Row, Origin]]:
    """The rows of one file with their origins: .json .jsonl .csv .parquet .txt .md, each also with .gz behind it.

    `advance` is called with the bytes of the file consumed since its last call (for a progress bar). `sample_by` is
    what a row of a .txt or .md file is; by default a line of a .txt file and the whole of a .md file.
    Raises DataError for a file that is missing, empty, of an unknown kind, broken, or not UTF-8.
    """
    path = Path(path)
    kind = file_kind(path)
    readers = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    readers[".txt"] = lambda file, name: documents(_lines(file, name), name, sample_by or "line")
    readers[".md"] = lambda file, name: documents(_lines(file, name), name, sample_by or "document")
    found = False
    with path.open("rb") as raw:
        plain: IO[bytes] = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw  # type: ignore[assignment]
        seen = 0
        try:
            for row, origin in readers[kind](plain, str(path)):
                found = True
                yield row, origin
                if advance is not None and (position := raw.tell()) - seen >= _ADVANCE_BYTES:
                    advance(position - seen)
                    seen = position
            if advance is not None:
                advance(raw.tell() - seen)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(
                f"{path}: not a whole gzip file", given=error, try_=f"gzip -t {path}   shows whether it is damaged"
            ) from error
    if not found:
        raise DataError(
            f"{path}: there are no rows in it", given=f"{path.stat().st_size} bytes", allowed="one row or more"
        )


def source_sha256(path: str | Path) -> str:
    """sha256 of the file's bytes as they lie on disk. Raises DataError for a missing file."""
    file_kind(Path(path))
    return sha256_file(Path(path))


def file_kind(path: Path) -> str:
    """The extension that decides the reader. Raises DataError for a file that is missing, empty or of no known kind."""
    if not path.is_file():
        folder = path.parent
        names = [file.name for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
        near = nearest(path.name, names)
        raise DataError(
            f"{path}: " + ("is a folder, not a file" if path.is_dir() else "no such file"),
            given=path,
            allowed=f"a file ending in {' '.join(EXTENSIONS)}, also with .gz",
            try_=str(folder / near) if near else None,
        )
    kind = (Path(path.stem).suffix if path.suffix == ".gz" else path.suffix).lower()
    if kind not in EXTENSIONS:
        raise DataError(
            f"{path}: cannot tell what kind of file this is",
            given=f"the ending '{kind or path.suffix}'",
            allowed=f"{' '.join(EXTENSIONS)}, also with .gz",
            try_="rename it to the ending that says what is in it",
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty", given="0 bytes", allowed="one row or more")
    return kind


_LIST = "rename it to .json, if it is one list of rows"


def _not_utf8(file: str, line: int, byte: int, error: UnicodeDecodeError) -> NoReturn:
    raise DataError(
        f"{file}:{line}: not UTF-8",
        given=f"byte 0x{error.object[error.start]:02x} at byte {byte} of the file",
        allowed="UTF-8, with or without a byte order mark",
        try_=f"iconv -f {_encoding(error.object)} -t utf-8 {file} > fixed   (with the encoding it really has)",
    ) from error


def _encoding(line: bytes) -> str:
    """The likely encoding of a line that is not UTF-8."""
    return "utf-16" if line.startswith((b"\xff\xfe", b"\xfe\xff")) else "latin1"


def _broken_json(file: str, line: int, column: int, reason: str, given: str) -> NoReturn:
    raise DataError(
        f"{file}:{line}: broken JSON at column {column}: {reason}",
        given=given.strip()[:120] or "(end of file)",
        allowed="a list of objects (.json), or one object a line (.jsonl)",
        try_=_LIST if file.removesuffix(".gz").endswith("l") and line == 1 and given.startswith("[") else None,
    )


def _no_object(origin: Origin, value: object) -> NoReturn:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    raise DataError(
        f"{origin}: a row must be an object with named columns",
        given=shown[:120],
        allowed='{"column": "value", ...}',
        try_=_LIST if isinstance(value, list) and origin.row == 0 else None,
    )


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, decoded line with its line end)."""
    offset = 0
    for number, line in enumerate(file, 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            _not_utf8(name, number, offset + error.start, error)
        offset += len(line)
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def _jsonl(file: IO[bytes], name: str) -> Iterator[tuple[Row, Origin]]:
    row = 0
    for number, line in _lines(file, name):
        if not line.strip():
            continue
        try:
            value = loads(line)
        except orjson.JSONDecodeError as error:
            _broken_json(name, number, error.colno, error.msg, line)
        origin = Origin(name, row, number)
        if not isinstance(value, dict):
            _no_object(origin, value)
        yield value, origin
        row += 1


def _csv(file: IO[bytes], name: str) -> Iterator[tuple[Row, Origin]]:
    csv.field_size_limit((1 << 31) - 1)  # the module's limit of 128 KiB is shorter than an ordinary long reply
    reader = csv.DictReader((line for _, line in _lines(file, name)), strict=True)
    row = 0
    while True:
        line = reader.line_num + 1
        try:
            if reader.fieldnames and line == 1:  # the header was read just now
                line = reader.line_num + 1
            if row == 0:
                _refuse_same_names(list(reader.fieldnames or ()), name)
            value = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{name}:{line}: broken CSV", given=error, allowed='commas between, "..." around'
            ) from error
        if value is None:
            return
        origin = Origin(name, row, line)
        if None in value or None in value.values():
            columns = list(reader.fieldnames or ())
            count = len(columns) + len(value.get(None) or ()) - sum(cell is None for cell in value.values())
            raise DataError(
                f"{origin}: the row does not have the header's columns",
                given=f"{count} values",
                allowed=f"{len(columns)}: {' '.join(columns)}",
                try_='put "..." around a value that contains a comma, a quote or a line end',
            )
        yield value, origin
        row += 1


def _refuse_same_names(columns: list[str], name: str) -> None:
    """Raise DataError where the reader would keep the last of two columns, without a word."""
    twice = [column for column in dict.fromkeys(columns) if column and columns.count(column) > 1]
    if twice:
        raise DataError(
            f"{name}:1: two columns have the same name",
            given=" ".join(twice),
            allowed="each name once",
            try_="rename one of them",
        )


def _parquet(file: IO[bytes], name: str) -> Iterator[tuple[Row, Origin]]:
    require("pyarrow", extra="parquet", needed_by=f"reading the parquet file {name}")
    parquet = require("pyarrow.parquet", extra="parquet", needed_by=f"reading the parquet file {name}")
    try:
        table = parquet.ParquetFile(file)
        row, binary = 0, "binary" in str(table.schema_arrow)  # somewhere in it; or a column is called so
        for batch in table.iter_batches(batch_size=256):
            for value in batch.to_pylist():
                yield texts(value) if binary else value, Origin(name, row)
                row += 1
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise DataError(f"{name}: not a readable parquet file", given=error) from error


class _JsonText:
    """A window of decoded text that grows at its end and forgets at its start."""

    def __init__(self, file: IO[bytes], name: str):
        self.file, self.name = file, name
        self.decoder = getincrementaldecoder("utf-8-sig")()
        self.text, self.at = "", 0
        self.bytes_read, self.lines_before, self.ended = 0, 0, False
        self.line_start_column = 0  # characters of the current line that were forgotten
        self.counted, self.counted_lines = 0, 0  # newlines already counted in this window, so that rows stay cheap

    def more(self) -> bool:
        """Read on; at least as much as is waiting, so that a huge row costs a constant number of looks."""
        if self.ended:
            return False
        block = self.file.read(max(_BLOCK_BYTES, len(self.text) - self.at))
        self.forget()
        pending = len(self.decoder.getstate()[0])
        try:
            self.text += self.decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            good = bytes(error.object[: error.start]).count(b"\n")
            line = 1 + self.lines_before + self.text.count("\n") + good
            _not_utf8(self.name, line, self.bytes_read - pending + error.start, error)
        self.bytes_read += len(block)
        self.ended = not block
        return True

    def forget(self) -> None:
        """Drop what was consumed, keeping count of lines."""
        gone, self.text, self.at = self.text[: self.at], self.text[self.at :], 0
        self.counted = self.counted_lines = 0
        newlines = gone.count("\n")
        self.lines_before += newlines
        tail = len(gone) - (gone.rfind("\n") + 1)
        self.line_start_column = tail if newlines else self.line_start_column + tail

    def place(self, at: int) -> tuple[int, int]:
        """(line, column) of index `at` of the window, both from 1."""
        before = self.text[:at]
        newlines = before.count("\n")
        column = at - (before.rfind("\n") + 1) + (0 if newlines else self.line_start_column)
        return 1 + self.lines_before + newlines, 1 + column

    def line(self) -> int:
        """The line of the next character, from 1."""
        self.counted_lines += self.text.count("\n", self.counted, self.at)
        self.counted = self.at
        return 1 + self.lines_before + self.counted_lines

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self) -> Any:
        """The next JSON value, consumed."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
                # a bare number at the window's end might go on
                if end < len(self.text) or not self.more():
                    self.at = end
                    return value
            except RecursionError:
                _broken_json(self.name, *self.place(self.at), "nested too deeply", self.text[self.at : self.at + 80])
            except json.JSONDecodeError as error:
                reason, place = error.msg, error.pos
                unfinished = reason.startswith("Unterminated string") or place > len(self.text) - 16
                if unfinished and self.more():
                    continue
                line, column = self.place(place)
                _broken_json(self.name, line, column, reason, self.text[max(0, place - 40) : place + 40])
            except ValueError as error:  # an integer of thousands of digits, which Python does not read
                _broken_json(self.name, *self.place(self.at), str(error), self.text[self.at : self.at + 80])

    def expect(self, allowed: str) -> str:
        """Consume one of the `allowed` characters."""
        char = self.peek()
        if not char or char not in allowed:
            line, column = self.place(self.at)
            _broken_json(self.name, line, column, f"expected {' or '.join(allowed)}", self.text[self.at : self.at + 80])
        self.at += 1
        return char


_DECODER = json.JSONDecoder()


def _json(file: IO[bytes], name: str) -> Iterator[tuple[Row, Origin]]:
    text = _JsonText(file, name)
    if text.peek() == "{":
        yield from _json_object(text, name)
        return
    text.expect("[")
    yield from _json_list(text, name)
    _nothing_behind(text)


def _json_object(text: _JsonText, name: str) -> Iterator[tuple[Row, Origin]]:
    """{"data": [...]}, with other keys before and after."""
    text.expect("{")
    keys: list[str] = []
    found = False
    while text.peek() != "}":
        key = text.value()
        keys.append(str(key))
        text.expect(":")
        if key == "data" and text.peek() == "[":
            found = True
            text.expect("[")
            yield from _json_list(text, name)
        else:
            text.value()
        if text.peek() == "}":
            break
        text.expect(",")
    if not found:
        raise DataError(
            f"{name}: a .json file must be a list of rows",
            given=f"an object with the keys {' '.join(keys[:12])}",
            allowed='[{...}, {...}], or {"data": [{...}, ...]}',
            try_="rename it to .jsonl if it holds one object a line",
        )
    text.expect("}")
    _nothing_behind(text)


def _json_list(text: _JsonText, name: str) -> Iterator[tuple[Row, Origin]]:
    """The objects of a list whose `[` is already consumed."""
    if text.peek() == "]":
        text.expect("]")
        return
    row, last_line = 0, 1
    while True:
        first = text.peek()
        line = text.line()
        # a file on one line has no lines worth naming: the row number says more
        origin = Origin(name, row, line if line > last_line else None)
        last_line = max(last_line, line)
        value = text.value()
        if first != "{":
            _no_object(origin, value)
        if is_too_deep(value):
            _broken_json(name, line, 1, "nested too deeply", f"row {row}")
        yield value, origin
        row += 1
        if text.expect(",]") == "]":
            return


def _nothing_behind(text: _JsonText) -> None:
    if text.peek():
        line, column = text.place(text.at)
        _broken_json(
            text.name, line, column, "there is more behind the end of the list", text.text[text.at : text.at + 80]
        )
