"""Writing a GGUF file: what it holds is said first, then its tensors come, in any order and in parts.

The `gguf` package writes the head. The tensors are placed by their offsets, so a stack of experts is written expert by
expert, and one dense tensor is in memory at a time. Types are those that the package encodes; rows are the last
dimension, and no block of a type crosses one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, LlamaFileType
from gguf.gguf_writer import GGUFWriter
from torch import Tensor

from lorikeet.base.errors import CheckpointError

Kind = GGMLQuantizationType
ALIGNMENT = 32  # bytes; what readers assume where a file does not say
ENCODE_ELEMENTS = 1 << 18  # at a time: the package's temporaries are several times their input
# what a person may ask for: how matrices are kept, and what llama.cpp calls such a file
TYPES: dict[str, tuple[Kind, LlamaFileType]] = {
    "f32": (Kind.F32, LlamaFileType.ALL_F32),
    "f16": (Kind.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (Kind.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (Kind.Q5_1, LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (Kind.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    "q4_1": (Kind.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "tq1_0": (Kind.TQ1_0, LlamaFileType.MOSTLY_TQ1_0),
    "tq2_0": (Kind.TQ2_0, LlamaFileType.MOSTLY_TQ2_0),
}
FLOATS = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}
_WHOLE = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0)  # good enough for embedding and head


class Stored(NamedTuple):
    """How one tensor lies in the file: [..., out, in]."""

    shape: tuple[int, ...]
    kind: Kind


def kept_as(name: str, shape: tuple[int, ...], kind: Kind) -> Kind:
    """The type of one tensor in a file whose matrices are `kind`: vectors, routers and learned positions stay in
    float32, embedding and head have at least 8 bits, and rows that are no whole blocks stay in float16."""
    if len(shape) < 2 or "ffn_gate_inp" in name or name.startswith(("rope_", "position_embd")):
        return Kind.F32
    if name in ("token_embd.weight", "output.weight") and kind not in _WHOLE:
        kind = Kind.Q8_0
    return kind if shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 else Kind.F16


class GGUFFile:
    """A file in the making: `write` each tensor, then `finish`. `path` is the caller's to rename or to remove."""

    def __init__(self, path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]):
        """metadata: plain Python, general.architecture among it; bytes are an array of bytes."""
        writer = GGUFWriter(str(path), metadata["general.architecture"])
        for key, value in metadata.items():
            if key != "general.architecture" and value not in (None, "", [], b""):
                writer.add_key_value(key, value, _value_type(value))
        for name, stored in tensors.items():
            writer.add_tensor_info(name, stored.shape, np.dtype(np.float32), _bytes(stored), raw_dtype=stored.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        self._tensors, self._left = dict(tensors), {}
        at = _padded(path.stat().st_size)
        self._starts = {}
        for name, stored in tensors.items():
            self._starts[name] = at
            self._left[name] = _bytes(stored)
            at = _padded(at + _bytes(stored))
        self._file = path.open("r+b")
        self._file.truncate(at)

    def write(self, name: str, tensor: Tensor, part: int | None = None) -> None:
        """A whole tensor, or entry `part` of its first dimension. Raises CheckpointError for numbers that the type
        cannot hold."""
        stored = self._tensors[name]
        expected = stored.shape if part is None else stored.shape[1:]
        assert tuple(tensor.shape) == expected, f"{name}: {tuple(tensor.shape)} for {expected}"
        data = encode(name, tensor, stored.kind)
        self._file.seek(self._starts[name] + (part or 0) * len(data))
        self._file.write(data)
        self._left[name] -= len(data)

    def finish(self) -> None:
        """Flush to the disk."""
        missing = [name for name, left in self._left.items() if left]
        assert not missing, f"never written: {missing[:3]}"
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Also for what will not be finished."""
        self._file.close()


def size_bytes(tensors: Iterable[Stored]) -> int:
    """What the tensors take in a file."""
    return sum(_padded(_bytes(stored)) for stored in tensors)


def encode(name: str, tensor: Tensor, kind: Kind) -> bytes:
    """The bytes of a tensor whose rows are the last dimension. Raises CheckpointError."""
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(f"tensor '{name}' has numbers that are not finite", try_="another checkpoint of the run")
    if kind in FLOATS:
        made = tensor.to(FLOATS[kind]).contiguous()
        if not bool(made.isfinite().all()):
            raise CheckpointError(
                f"tensor '{name}' has numbers that {kind.name} cannot hold",
                given=f"up to {tensor.abs().max().item():.4g}",
                allowed="up to 65504",
                try_="--type bf16",
            )
        return made.reshape(-1).view(torch.uint8).numpy().tobytes()
    block, size = GGML_QUANT_SIZES[kind]
    rows = tensor.float().contiguous().reshape(-1, block).numpy()
    out = np.empty((len(rows), size), np.uint8)
    step = max(1, ENCODE_ELEMENTS // block)
    encoder = getattr(quants, kind.name)
    for start in range(0, len(rows), step):
        out[start : start + step] = encoder.quantize_blocks(rows[start : start + step])
    return out.tobytes()


def _bytes(stored: Stored) -> int:
    block, size = GGML_QUANT_SIZES[stored.kind]
    return math.prod(stored.shape) // block * size


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _value_type(value: Any) -> GGUFValueType:
    if isinstance(value, bool):
        return GGUFValueType.BOOL
    if isinstance(value, int):
        return GGUFValueType.UINT32 if value >= 0 else GGUFValueType.INT32
    if isinstance(value, float):
        return GGUFValueType.FLOAT32
    return GGUFValueType.STRING if isinstance(value, str) else GGUFValueType.ARRAY
