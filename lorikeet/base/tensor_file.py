"""Tensors in a safetensors file, read back after writing.

The layout: eight bytes with the length of a JSON header, the header (dtype, shape and place of each tensor by name),
then the tensors' bytes. The bytes are compared where they lie in the mapped file: opening 840 tensors one by one to
compare them took longer than writing them.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from safetensors.torch import save_file
from torch import Tensor

from lorikeet.base.errors import CheckpointError

# the header's names of dtypes: those of models, then all
FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
DTYPES = FLOATS | {
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def save_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write contiguous tensors to `file`. Raises CheckpointError where they read back differently."""
    save_file(tensors, file, metadata=metadata)
    if not holds(file, tensors):
        raise CheckpointError(f"what was written to {file} reads back differently", try_="check the disk")


def finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite. One pass without a copy: a twentieth of the time of `isfinite().all()`."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return all(torch.isfinite(end).item() for end in torch.aminmax(tensor))


def holds(file: Path, tensors: dict[str, Tensor]) -> bool:
    """Whether a safetensors file holds exactly these tensors, bit for bit."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        start = 8 + int.from_bytes(mapped[:8], "little")
        header = orjson.loads(mapped[8:start])
        header.pop("__metadata__", None)
        content = np.frombuffer(mapped, np.uint8)
        try:
            return header.keys() == tensors.keys() and all(
                _same(said, content[start:], tensors[name]) for name, said in header.items()
            )
        finally:
            del content  # a view keeps the mapping from being closed


def _same(said: dict[str, Any], content: np.ndarray, tensor: Tensor) -> bool:
    begin, end = said["data_offsets"]
    own = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
    alike = said["shape"] == list(tensor.shape) and said["dtype"] == DTYPES.get(tensor.dtype, said["dtype"])
    return alike and np.array_equal(content[begin:end], own)
