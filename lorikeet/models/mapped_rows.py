"""Rows of a checkpoint's matrix, read when they are asked for and never kept: an embedding that takes no memory.

A step looks up some thousand of an embedding's rows, and the file often holds them as they are computed with; in
memory, those of Llama 2 7B would take 250 MiB. The file is mapped for each lookup alone, so none of its pages stay
with the process; the system's cache keeps them near for as long as it has room.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorikeet.base.errors import CheckpointError
from lorikeet.kernels import has_numbers

_PIECE = 8 << 20  # bytes
# numpy knows no bfloat16: rows are copied as integers of the same size
_BITS = {2: (np.uint16, torch.uint16), 4: (np.uint32, torch.uint32), 8: (np.uint64, torch.uint64)}


@dataclass(frozen=True)
class MappedRows:
    """A matrix [V, D] of `dtype` from byte `start` of `file`. `file` is None in a plan made before the download."""

    name: str
    shape: tuple[int, int]
    dtype: torch.dtype
    file: Path | None = None
    start: int = 0

    def gather(self, ids: Tensor) -> Tensor:
        """ids [T] -> rows [T, D], a copy. Raises CheckpointError where the file is gone or has become shorter."""
        found = torch.empty(len(ids), self.shape[1], dtype=self.dtype)
        if has_numbers(found):
            integers, same = _BITS[self.dtype.itemsize]
            np.take(self._map(integers), ids.numpy(), axis=0, out=found.view(same).numpy())
        return found

    def whole(self, dtype: torch.dtype) -> Tensor:
        """The matrix [V, D] in `dtype`, a copy."""
        return self.gather(torch.arange(self.shape[0])).to(dtype)

    def pieces(self) -> Iterator[Tensor]:
        """The matrix in rows [n, D] of a few MiB, one after the other, so that no two are in memory."""
        step = max(1, _PIECE // (self.shape[1] * self.dtype.itemsize))
        for start in range(0, self.shape[0], step):
            yield self.gather(torch.arange(start, min(start + step, self.shape[0])))

    def _map(self, integers: type[np.unsignedinteger[Any]]) -> np.ndarray:
        assert self.file is not None
        try:
            return np.memmap(self.file, integers, "r", self.start, self.shape)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.file}: the model's file went away while it was in use",
                given=f"'{self.name}': {error}",
                allowed="the file as it was when the model was loaded",
                try_="put it back and start again; a run goes on from its last checkpoint",
            ) from error
