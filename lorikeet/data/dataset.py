"""Prepared examples on disk, memory-mapped: a training set of any size costs no memory until it is read.

A store is a folder: tokens.bin (int32), weights.bin (float32), index.npy (where each example starts), origins.npy
([n, 3]: file as an index into files.json, row, line or 0), conversations.npy (a hash of each example's conversation),
files.json, counts.json, system.json (the system prompt that its conversations share, or null), sha256 (of tokens and
weights). Its name is a hash of everything that decides its content, so a stale store is never found.
"""

from __future__ import annotations

import hashlib
import io
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from lorikeet.base.nouns import Example, Origin

_HEADER_BYTES = 128  # of a .npy file whose shape is one or two numbers


class Writer:
    """Appends examples to a folder; `close` writes the index. Memory does not grow with them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._tokens: BinaryIO = (folder / "tokens.bin").open("wb")
        self._weights: BinaryIO = (folder / "weights.bin").open("wb")
        self._ends = _Column(folder / "index.npy", "<i8")
        self._origins = _Column(folder / "origins.npy", "<i8", columns=3)  # file, row, line
        self._hashes = _Column(folder / "conversations.npy", "<u8")
        self._ends.add(0)
        self._end = self._count = 0
        self._files: dict[str, int] = {}
        self._digest = hashlib.sha256()

    def add(self, tokens: bytes, weights: bytes, origin: Origin | None, conversation_hash: int) -> int:
        """Append one example: tokens [L] int32 and weights [L] float32, in this machine's order. Returns how many of
        its tokens are trained."""
        assert len(tokens) == len(weights) > 0
        if sys.byteorder == "big":
            tokens, weights = (np.frombuffer(part, "<i4").byteswap().tobytes() for part in (tokens, weights))
        self._tokens.write(tokens)
        self._weights.write(weights)
        length = len(tokens) // 4
        for part in (length.to_bytes(8, "little"), tokens, weights):
            self._digest.update(part)
        self._end += length
        self._ends.add(self._end)
        origin = origin or Origin("", self._count)
        file = self._files.setdefault(origin.file, len(self._files))
        self._origins.add(file, origin.row, origin.line or 0)
        self._hashes.add(conversation_hash)
        self._count += 1
        return int(np.count_nonzero(np.frombuffer(weights, "<f4")))

    def close(self, counts: dict[str, Any], system: str | None = None) -> None:
        """Write the index, the counts, and the system prompt that all share."""
        for file in (self._tokens, self._weights, self._ends, self._origins, self._hashes):
            file.close()
        (self.folder / "sha256").write_text(self._digest.hexdigest(), encoding="utf-8")
        (self.folder / "files.json").write_bytes(orjson.dumps(list(self._files)))
        (self.folder / "system.json").write_bytes(orjson.dumps(system))
        (self.folder / "counts.json").write_bytes(orjson.dumps(counts, option=orjson.OPT_INDENT_2))


class _Column:
    """A .npy file that grows: whole numbers in rows of `columns`; the header, of fixed size, is written last."""

    def __init__(self, path: Path, dtype: str, columns: int = 1):
        self._file: BinaryIO = path.open("wb")
        self._file.write(bytes(_HEADER_BYTES))
        self._dtype, self._columns, self._count = dtype, columns, 0
        self._waiting = array(np.dtype(dtype).char)

    def add(self, *values: int) -> None:
        self._waiting.extend(values)
        if len(self._waiting) >= 1 << 14:
            self._flush()

    def _flush(self) -> None:
        self._file.write(np.array(self._waiting, self._dtype).tobytes())
        self._count += len(self._waiting)
        del self._waiting[:]

    def close(self) -> None:
        self._flush()
        rows = self._count // self._columns
        shape = (rows,) if self._columns == 1 else (rows, self._columns)
        said = {"descr": self._dtype, "fortran_order": False, "shape": shape}
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, said)
        assert header.tell() == _HEADER_BYTES
        self._file.seek(0)
        self._file.write(header.getvalue())
        self._file.close()


class Examples(Sequence[Example]):
    """Some or all examples of a store, in the store's order."""

    def __init__(self, folder: Path, chosen: np.ndarray | None = None):
        """`chosen` [n] int64: which examples of the store; all where it is None."""
        self.folder = folder
        self._index = np.load(folder / "index.npy")
        self._origins = np.load(folder / "origins.npy", mmap_mode="r")
        self.conversation_hashes: np.ndarray = np.load(folder / "conversations.npy")  # [n] uint64
        self._files = orjson.loads((folder / "files.json").read_bytes())
        self.counts: dict[str, Any] = orjson.loads((folder / "counts.json").read_bytes())
        self.system: str | None = orjson.loads((folder / "system.json").read_bytes())  # that all of the store share
        total = int(self._index[-1])
        self._tokens = _mapped(folder / "tokens.bin", np.dtype("<i4"), total)
        self._weights = _mapped(folder / "weights.bin", np.dtype("<f4"), total)
        self._chosen = np.arange(len(self._index) - 1) if chosen is None else np.asarray(chosen, np.int64)
        self.conversation_hashes = self.conversation_hashes[self._chosen]
        self.lengths: np.ndarray = np.diff(self._index)[self._chosen]  # [n] int64, tokens of each example
        # of what is learned, not of where it was read: data that moved is the same data
        digest = hashlib.sha256((folder / "sha256").read_bytes())
        digest.update(self._chosen.astype("<i8").tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        number = int(self._chosen[index])
        start, end = int(self._index[number]), int(self._index[number + 1])
        file, row, line = self._origins[number]
        origin = Origin(self._files[file], int(row), int(line) or None)
        return Example(np.asarray(self._tokens[start:end]), np.asarray(self._weights[start:end]), origin)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    @property
    def tokens(self) -> int:
        """Tokens of all examples, each as rendered alone."""
        return int(self.lengths.sum())

    @property
    def trained_tokens(self) -> int:
        """Tokens with a loss weight above 0."""
        return sum(int(np.count_nonzero(example.weights)) for example in self)


def _mapped(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    return np.memmap(path, dtype, "r", shape=(length,)) if length else np.zeros(0, dtype)
