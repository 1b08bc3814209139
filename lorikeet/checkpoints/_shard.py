"""A safetensors file written tensor by tensor, with one of them in memory.

The format begins with a header that names all tensors and where they lie, wide numbers first so that each is aligned.
What comes in is therefore spooled to a file beside it, and copied into place behind the header once all are known. (The
library's own writer holds a copy of the bytes of all tensors.)
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from lorikeet.base.tensor_file import DTYPES

_COPIED = 1 << 22  # bytes at a time


class Shard:
    """Tensors on their way into `file`, which is there once `close` returns."""

    def __init__(self, file: Path):
        self._file, self._spooled = file, file.with_name(f"{file.name}.spool")
        self._spool = self._spooled.open("w+b")
        self._at: dict[str, tuple[Tensor, int]] = {}  # name: (its type and shape, where it starts in the spool)
        self.nbytes = 0

    @property
    def names(self) -> list[str]:
        return list(self._at)

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor away; it is not kept."""
        here = tensor.detach().to("cpu").contiguous()
        self._spool.write(here.flatten().view(torch.uint8).numpy().data)
        self._at[name] = here.to("meta"), self.nbytes
        self.nbytes += here.nbytes

    def close(self) -> None:
        """Write the file, and remove the spool."""
        ordered = sorted(self._at, key=lambda name: (-self._at[name][0].itemsize, name))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in ordered:
            tensor, _ = self._at[name]
            start, end = end, end + tensor.nbytes
            header[name] = {
                "dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]
            }  # fmt: skip
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with self._file.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in ordered:
                tensor, start = self._at[name]
                self._spool.seek(start)
                left = tensor.nbytes
                while left:
                    left -= out.write(self._spool.read(min(left, _COPIED)))
        self.discard()

    def discard(self) -> None:
        """Remove the spool."""
        self._spool.close()
        self._spooled.unlink(missing_ok=True)
