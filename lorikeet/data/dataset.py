"""Prepared examples on disk, memory-mapped: a training set of any size costs no memory until it is read.

A store is a folder: tokens.bin (int32), weights.bin (float32), index.npy (where each example starts), origins.npy
([n, 3]: file as an index into files.json, row, line or 0), conversations.npy (a hash of each example's conversation),
files.json, counts.json, sha256 (of tokens and weights). Its name is a hash of everything that decides its content, so
a stale store is never found.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from lorikeet.base.nouns import Example, Origin


class Writer:
    """Appends examples to a folder; `close` writes the index. Memory grows by 40 bytes an example."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._tokens: BinaryIO = (folder / "tokens.bin").open("wb")
        self._weights: BinaryIO = (folder / "weights.bin").open("wb")
        self._ends = array("q", [0])
        self._files: dict[str, int] = {}
        self._origins = array("q")  # file, row, line of each example, one after the other
        self._hashes = array("Q")
        self._digest = hashlib.sha256()

    def add(self, tokens: np.ndarray, weights: np.ndarray, origin: Origin | None, conversation_hash: int) -> None:
        """Append one example: tokens [L] int32, weights [L] float32."""
        assert len(tokens) == len(weights) > 0
        content = np.ascontiguousarray(tokens, "<i4").tobytes(), np.ascontiguousarray(weights, "<f4").tobytes()
        self._tokens.write(content[0])
        self._weights.write(content[1])
        for part in (len(tokens).to_bytes(8, "little"), *content):
            self._digest.update(part)
        self._ends.append(self._ends[-1] + len(tokens))
        origin = origin or Origin("", len(self._hashes))
        file = self._files.setdefault(origin.file, len(self._files))
        self._origins.extend((file, origin.row, origin.line or 0))
        self._hashes.append(conversation_hash)

    def close(self, counts: dict[str, Any]) -> None:
        """Write the index and the counts."""
        self._tokens.close()
        self._weights.close()
        np.save(self.folder / "index.npy", np.array(self._ends, np.int64))
        np.save(self.folder / "origins.npy", np.array(self._origins, np.int64).reshape(-1, 3))
        np.save(self.folder / "conversations.npy", np.array(self._hashes, np.uint64))
        (self.folder / "sha256").write_text(self._digest.hexdigest())
        (self.folder / "files.json").write_bytes(orjson.dumps(list(self._files)))
        (self.folder / "counts.json").write_bytes(orjson.dumps(counts, option=orjson.OPT_INDENT_2))


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
