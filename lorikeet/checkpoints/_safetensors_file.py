"""safetensors files of a model written tensor by tensor, where names, dtypes and shapes are known before the numbers.

hf.save holds a whole file's tensors; here a file's header is written first and the tensors behind it, one at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lorikeet.base.files import write_file
from lorikeet.base.tensor_file import FLOATS

Listed = tuple[str, torch.dtype, tuple[int, ...]]  # a tensor's name, dtype and shape


def size_bytes(listed: Sequence[Listed]) -> int:
    """Bytes of all their numbers."""
    return sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in listed)


def write_model(folder: Path, listed: Sequence[Listed], read: Callable[[str], Tensor], max_shard_bytes: int) -> None:
    """model.safetensors, or shards and their index, in `folder`; `read` is asked for one tensor at a time."""
    shards: list[list[Listed]] = [[]]
    for one in listed:
        if shards[-1] and size_bytes([*shards[-1], one]) > max_shard_bytes:
            shards.append([])
        shards[-1].append(one)
    if len(shards) == 1:
        _write(folder / "model.safetensors", shards[0], read)
        return
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / file, shard, read)
        where |= {name: file for name, _, _ in shard}
    index = {"metadata": {"total_size": size_bytes(listed)}, "weight_map": dict(sorted(where.items()))}
    write_file(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def _write(file: Path, listed: Sequence[Listed], read: Callable[[str], Tensor]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for one in listed:
        name, dtype, shape = one
        stop = start + size_bytes([one])
        header[name] = {"dtype": FLOATS[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, dtype, shape in listed:
            tensor = read(name)
            assert tensor.dtype == dtype and tuple(tensor.shape) == shape, name
            if tensor.numel():
                out.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
            del tensor
