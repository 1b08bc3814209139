"""What every model file or folder answers: what is in it, and one dense tensor at a time.

A kind is a file of this folder with a module function `recognises(path) -> bool` and `open(path, ...) -> Checkpoint`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


class Checkpoint(Protocol):
    path: Path
    layout: str  # the kind's name: "hf", "gguf"; decides which names and config keys a model family expects
    config: dict[str, Any]  # hf: config.json; gguf: the file's metadata, e.g. {"general.architecture": "llama", ...}

    def names(self) -> list[str]:
        """Tensor names as stored."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """[out, in] order for matrices, without reading the tensor."""
        ...

    def stored(self, name: str) -> str:
        """How the tensor is stored, as safetensors and GGUF name it: F32, BF16, Q4_K. Without reading the tensor."""
        ...

    def read(self, name: str, part: int | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, dense and on the CPU, or only entry `part` of its first dimension (one expert of a stack).
        Stored dtype for float formats; `dtype` (by default float32) for what GGUF dequantises.
        Raises CheckpointError for a missing name or a truncated file."""
        ...

    def place(self, name: str) -> tuple[Path, int] | None:
        """Where the tensor lies as plain numbers in the order of its shape: (file, first byte). None where its stored
        form is another, or where that is not known."""
        ...

    def fingerprint(self) -> str:
        """sha256 that identifies the weights: over names, shapes and contents (cached beside file size and mtime)."""
        ...
