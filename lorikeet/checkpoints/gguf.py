"""GGUF: llama.cpp's single file with weights (usually quantised), settings and tokenizer.

`read` gives what the `gguf` package dequantises, so a model trained from a GGUF file starts from exactly the numbers
that llama.cpp computes with. Names and configuration keys stay GGUF's: translating them is the model family's work.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from lorikeet.base.errors import CheckpointError, nearest
from lorikeet.checkpoints._fingerprint import cached_fingerprint
from lorikeet.checkpoints._gguf_header import Header, TensorInfo

FLOATS = {
    GGMLQuantizationType.F64: torch.float64,
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
# at a time: the package's temporaries, several times the size of their input, then stay in the core's cache
DEQUANTISE_ELEMENTS = 1 << 18


def recognises(path: Path) -> bool:
    """A file named .gguf or beginning with GGUF, or a folder with exactly one .gguf file and no config.json."""
    if path.is_dir():
        return len(list(path.glob("*.gguf"))) == 1 and not (path / "config.json").exists()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix == ".gguf" or file.read(4) == b"GGUF"


def open(path: Path, *, allow_pickle: bool = False) -> GGUFCheckpoint:
    """Open a GGUF file (it holds no pickles, whatever `allow_pickle` says). Raises CheckpointError."""
    return GGUFCheckpoint(next(path.glob("*.gguf")) if path.is_dir() else path)


class GGUFCheckpoint:
    """A GGUF file, memory-mapped. `config` leaves out long arrays; `metadata(key)` has every key."""

    layout = "gguf"

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise CheckpointError(f"{path}: empty file", allowed="a GGUF file", try_="download the file again")
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._header = Header(path, self._data)
        self.config: dict[str, Any] = self._header.short()
        if self.config.get("split.count", 1) not in (0, 1):
            raise CheckpointError(
                f"{path}: one of {self.config['split.count']} parts of a split GGUF",
                allowed="a GGUF in one file",
                try_="join the parts with llama.cpp's  llama-gguf-split --merge FIRST_PART OUTPUT",
            )
        for name, info in self._header.tensors.items():
            end = self._start(info) + math.prod(self._byte_shape(name, info))
            if end > len(self._data):
                raise self._header.damaged(f"tensor '{name}' ends at byte {end:,}")

    def metadata(self, key: str) -> Any:
        """The value of one metadata key, long arrays too, as plain Python; None when absent."""
        return self._header.metadata(key)

    def metadata_keys(self) -> list[str]:
        """The metadata's keys, those of long arrays too."""
        return list(self._header.values)

    def names(self) -> list[str]:
        """Tensor names as stored, e.g. `blk.0.attn_q.weight`."""
        return list(self._header.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """[out, in] for matrices."""
        return self._info(name).shape

    def stored(self, name: str) -> str:
        """GGUF's name of the tensor's type, e.g. Q4_K."""
        return GGMLQuantizationType(self._info(name).kind).name

    def read(self, name: str, part: int | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, or entry `part` of its first dimension, in its own float dtype; in `dtype` (float32) where it
        is quantised, piece by piece, so that no whole float32 copy is made on the way. Always a copy."""
        info = self._info(name)
        kind = GGMLQuantizationType(info.kind)
        raw, shape = self._raw(name), info.shape
        if part is not None:
            shape = info.shape[1:]
            rows = math.prod(shape[:-1])
            raw = raw[part * rows : (part + 1) * rows]
        if kind in FLOATS:
            read = torch.from_numpy(raw.copy()).view(FLOATS[kind]).reshape(shape)
        else:
            read = self._dequantised(name, kind, raw, dtype or torch.float32).reshape(shape)
        self._release()
        return read

    def place(self, name: str) -> tuple[Path, int] | None:
        """Where the tensor begins, if its numbers are floats."""
        info = self._info(name)
        return (self.path, self._start(info)) if GGMLQuantizationType(info.kind) in FLOATS else None

    def _dequantised(self, name: str, kind: GGMLQuantizationType, raw: np.ndarray, dtype: torch.dtype) -> Tensor:
        """Stored rows as [blocks, elements of a block] in `dtype`.

        Whole blocks go to the package's class of the kind: its `dequantize` does the same 16 rows at a time, and for
        rows of some hundred elements most of its time goes into cutting them."""
        block, size = GGML_QUANT_SIZES[kind]
        blocks = raw.reshape(-1, size)
        out = torch.empty(len(blocks), block, dtype=dtype)
        step = max(1, DEQUANTISE_ELEMENTS // block)
        quant = getattr(quants, kind.name, None)
        if quant is None:
            raise CheckpointError(
                f"{self.path}: tensor '{name}' cannot be dequantised",
                given=kind.name,
                try_="a GGUF of another type, Q8_0 say",
            )
        quant.init_grid()
        for start in range(0, len(blocks), step):
            out[start : start + step] = torch.from_numpy(quant.dequantize_blocks(blocks[start : start + step]))
        return out

    def _release(self) -> None:
        """Pages of the file that were read count as this process's memory until it gives them up."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._data.madvise(mmap.MADV_DONTNEED)

    def fingerprint(self) -> str:
        """sha256 over names, types, shapes and stored bytes."""
        return cached_fingerprint([self.path], self._contents())

    def _contents(self) -> Iterator[tuple[str, str, tuple[int, ...], np.ndarray]]:
        for name in sorted(self._header.tensors):
            info = self._header.tensors[name]
            yield name, GGMLQuantizationType(info.kind).name, info.shape, self._raw(name).reshape(-1)
            self._release()

    def _raw(self, name: str) -> np.ndarray:
        """The stored bytes, [rows, bytes of a row] uint8, a view of the file."""
        info = self._info(name)
        rows, width = self._byte_shape(name, info)
        return np.frombuffer(self._data, np.uint8, rows * width, self._start(info)).reshape(rows, width)

    def _start(self, info: TensorInfo) -> int:
        return self._header.data_start + info.offset

    def _info(self, name: str) -> TensorInfo:
        if name not in self._header.tensors:
            close = nearest(name, self._header.tensors)
            raise CheckpointError(
                f"{self.path}: no tensor '{name}'", given=f"{len(self._header.tensors)} tensors", try_=close
            )
        return self._header.tensors[name]

    def _byte_shape(self, name: str, info: TensorInfo) -> tuple[int, int]:
        try:
            kind = GGMLQuantizationType(info.kind)
        except ValueError as error:
            raise CheckpointError(
                f"{self.path}: tensor '{name}' is of a type that is not known",
                given=f"type {info.kind}",
                allowed=" ".join(kind.name for kind in GGMLQuantizationType),
                try_="pip install -U gguf",
            ) from error
        block, size = GGML_QUANT_SIZES[kind]
        width, rows = info.shape[-1], math.prod(info.shape[:-1])
        if width % block:
            raise CheckpointError(
                f"{self.path}: tensor '{name}' has rows that are no whole blocks", given=f"{info.shape} {kind.name}"
            )
        return rows, width // block * size
