"""The head of a GGUF file: its metadata and where each tensor lies.

The `gguf` package's own reader makes one numpy array per array element: 4 seconds and 100 MB for a vocabulary of
49,152. This one walks the same bytes with `struct`, remembers where long arrays are, and decodes them when asked.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorikeet.base.errors import CheckpointError

LONG = 1024  # arrays longer than this (vocabularies, merges) are decoded on request only
MOST_DIMENSIONS = 8
STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    BOOL: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
SIZES = {kind: np.dtype(code).itemsize for kind, code in SCALARS.items()}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as the file lists it. `shape` is [out, in]; `offset` counts from the start of the tensor data."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Array:
    kind: int
    count: int
    start: int


class Header:
    """Reads on construction. Raises CheckpointError when this is no GGUF file, or it ends too early."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at = path, data, 0
        if len(data) < 4 or data[:4] != b"GGUF":
            raise CheckpointError(
                f"{path}: not a GGUF file",
                given=f"it begins with {bytes(data[:4])!r}",
                allowed="a file that begins with b'GGUF'",
                try_="download the file again",
            )
        self.at = 4
        version = self._number(4)
        if version not in (2, 3):
            raise CheckpointError(
                f"{path}: GGUF version not supported",
                given="big-endian" if version & 0xFFFF == 0 else f"version {version}",
                allowed="versions 2 and 3, little-endian",
                try_="convert the model again with a current llama.cpp",
            )
        tensor_count, key_count = self._number(8), self._number(8)
        self.values: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._text()
            self.values[key] = self._value(self._number(4))
        self.tensors = dict(self._tensor() for _ in range(tensor_count))
        alignment = self.values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self.damaged(f"general.alignment is {alignment!r}")
        self.data_start = -(-self.at // alignment) * alignment

    def metadata(self, key: str) -> Any:
        """The value of `key` as plain Python, None when the file has no such key. Long arrays are decoded here."""
        value = self.values.get(key)
        return self._decode(value) if isinstance(value, _Array) else value

    def short(self) -> dict[str, Any]:
        """Everything but the long arrays."""
        return {key: value for key, value in self.values.items() if not isinstance(value, _Array)}

    def damaged(self, why: str) -> CheckpointError:
        """The error about a file that is not whole, or not what its header says."""
        return CheckpointError(
            f"{self.path}: damaged or cut off: {why}",
            given=f"{len(self.data):,} bytes",
            allowed="a complete GGUF file",
            try_="download the file again",
        )

    def _skip(self, size: int) -> int:
        start = self.at
        if start + size > len(self.data):
            raise self.damaged(f"the header needs {start + size:,} bytes")
        self.at = start + size
        return start

    def _number(self, size: int) -> int:
        start = self._skip(size)
        return int.from_bytes(self.data[start : start + size], "little")

    def _text(self) -> str:
        size = self._number(8)
        start = self._skip(size)
        try:
            return self.data[start : start + size].decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"text at byte {start:,} is not UTF-8") from error

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._text()
        if kind in SCALARS:
            start = self._skip(SIZES[kind])
            value = np.frombuffer(self.data, SCALARS[kind], 1, start)[0].item()
            return bool(value) if kind == BOOL else value
        if kind != ARRAY:
            raise self.damaged(f"value type {kind} at byte {self.at:,}")
        array = _Array(kind=self._number(4), count=self._number(8), start=self.at)
        self._skip_array(array)
        return array if array.count > LONG else self._decode(array)

    def _skip_array(self, array: _Array) -> None:
        if array.kind in SCALARS:
            self._skip(array.count * SIZES[array.kind])
        elif array.kind == STRING:
            read, at, end = struct.Struct("<Q").unpack_from, self.at, len(self.data) - 8
            for _ in range(array.count):
                if at > end:
                    raise self.damaged(f"the header needs more than {at:,} bytes")
                at += 8 + read(self.data, at)[0]
            self._skip(at - self.at)
        else:
            raise self.damaged(f"an array of type {array.kind} at byte {self.at:,}")

    def _decode(self, array: _Array) -> list[Any]:
        if array.kind != STRING:
            values = np.frombuffer(self.data, SCALARS[array.kind], array.count, array.start)
            return (values != 0).tolist() if array.kind == BOOL else values.tolist()
        back, self.at = self.at, array.start
        texts = [self._text() for _ in range(array.count)]
        self.at = back
        return texts

    def _tensor(self) -> tuple[str, TensorInfo]:
        name = self._text()
        rank = self._number(4)
        dimensions = [self._number(8) for _ in range(rank)] if rank <= MOST_DIMENSIONS else []
        if not dimensions or 0 in dimensions:
            raise self.damaged(f"tensor '{name}' has {rank} dimensions: {dimensions}")
        return name, TensorInfo(shape=tuple(reversed(dimensions)), kind=self._number(4), offset=self._number(8))
