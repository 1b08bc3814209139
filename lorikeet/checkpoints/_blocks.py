"""What a long job has finished, block by block: each in a file that is whole or not there, in a folder named by what
decides its contents. The job that is started again finds the blocks it need not make; one that asks for something else
has another name, finds nothing, and clears away what the first left.
"""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_TOLD = "told"  # the key of a file's metadata


def clear(output: Path, but: Path | None = None) -> None:
    """Remove what any job has left for `output`, except the folder `but`."""
    for folder in output.parent.glob(f".{glob.escape(output.name)}.blocks-*"):
        if folder != but:
            shutil.rmtree(folder)


class Blocks:
    """Finished blocks on disk, beside `output`, which they will become."""

    def __init__(self, output: Path, identity: Mapping[str, Any]):
        """`identity`: everything that decides the contents, as JSON."""
        named = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = output.with_name(f".{output.name}.blocks-{named}")
        clear(output, but=self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for half in self.folder.glob("*.half"):
            half.unlink()

    def __len__(self) -> int:
        return len(self._files())

    def put(self, name: str, tensors: Mapping[str, Tensor], told: Any = None) -> None:
        """Keep a block; `told` is JSON about it."""
        file, half = self._file(name), self._file(name).with_suffix(".half")
        ready = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
        save_file(ready, half, metadata={_TOLD: json.dumps(told), "order": json.dumps(list(tensors))})
        half.replace(file)

    def told(self, name: str) -> Any:
        """What `put` was told; KeyError where the block is not there."""
        with self._open(name) as file:
            return json.loads(file.metadata()[_TOLD])

    def __contains__(self, name: str) -> bool:
        if not self._file(name).is_file():
            return False
        try:
            with self._open(name) as file:
                return _TOLD in (file.metadata() or {})
        except (SafetensorError, OSError):  # a disk that lost what it had confirmed
            return False

    def tensors(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of a block, one at a time, in the order in which they were put."""
        with self._open(name) as file:
            for key in json.loads(file.metadata()["order"]):
                yield key, file.get_tensor(key)

    def remove(self) -> None:
        """Clear everything away."""
        shutil.rmtree(self.folder)

    def _open(self, name: str) -> Any:
        return safe_open(self._file(name), "pt")

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _files(self) -> list[Path]:
        return list(self.folder.glob("*.safetensors"))
