"""Hugging Face folders: config.json and safetensors, in one file or in shards with an index.

Reading maps the file and hands out one tensor at a time; writing holds one at a time, too. Pickled weights
(pytorch_model.bin) can run code when loaded, so they are refused unless asked for, and then only tensors are unpickled.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorikeet.base.errors import CheckpointError, nearest
from lorikeet.base.files import write_file
from lorikeet.checkpoints._fingerprint import cached_fingerprint
from lorikeet.checkpoints._shard import Shard

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
MAX_SHARD_BYTES = 4 << 30


def recognises(path: Path) -> bool:
    """A folder with config.json or with weights under one of the standard names."""
    marks = ("config.json", SAFE, PICKLED, f"{SAFE}.index.json", f"{PICKLED}.index.json")
    return path.is_dir() and any((path / mark).exists() for mark in marks)


def open(path: Path, *, allow_pickle: bool = False) -> HuggingFaceCheckpoint:
    """Open the folder. Raises CheckpointError for missing or damaged files, and for pickles unless `allow_pickle`."""
    config = _config(path)
    files, promised = _weight_files(path, SAFE)
    if files:
        return HuggingFaceCheckpoint(path, config, files, promised, {})
    files, promised = _weight_files(path, PICKLED)
    if not files:
        raise CheckpointError(
            f"{path}: no weights in this folder",
            given=" ".join(sorted(entry.name for entry in path.iterdir())[:12]),
            allowed=f"{SAFE}, or {SAFE}.index.json with its shards",
        )
    if not allow_pickle:
        raise CheckpointError(
            f"{path}: the weights are pickled, and a pickle can run code when it is loaded",
            given=" ".join(file.name for file in files[:4]),
            allowed=f"{SAFE}, or {SAFE}.index.json with its shards",
            try_="a copy with safetensors; if you trust the source, model.allow_pickle=true (download: --allow-pickle)",
        )
    tensors = {name: tensor for file in files for name, tensor in _unpickle(file).items()}
    return HuggingFaceCheckpoint(path, config, files, promised, tensors)


def _config(path: Path) -> dict[str, Any]:
    """config.json; AutoGPTQ's early folders say in a file of its own how the weights are quantised."""
    config, beside = read_json(path / "config.json", path), path / "quantize_config.json"
    if "quantization_config" not in config and beside.is_file():
        config["quantization_config"] = {"quant_method": "gptq"} | read_json(beside, path)
    return config


class HuggingFaceCheckpoint:
    """A folder of safetensors (or, when allowed, pickled tensors). `read` may alias the mapped file."""

    layout = "hf"

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        files: list[Path],
        promised: dict[str, str],
        pickled: dict[str, Tensor],
    ):
        self.path, self.config = path, config
        self._files, self._pickled = files, pickled
        self._where: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {name: tuple(tensor.shape) for name, tensor in pickled.items()}
        self._types = {name: _type_name(tensor.dtype) for name, tensor in pickled.items()}
        for file in () if pickled else files:
            with _safe_open(file) as shard:
                for name in shard.keys():  # noqa: SIM118  a safetensors handle, not a mapping
                    tensor = shard.get_slice(name)
                    self._where[name] = file
                    self._shapes[name], self._types[name] = tuple(tensor.get_shape()), tensor.get_dtype()
        missing = [name for name in promised if name not in self._shapes]
        if missing:
            raise CheckpointError(
                f"{path}: the index names {len(missing)} tensors that its shards do not hold",
                given=f"'{missing[0]}' is not in {promised[missing[0]]}",
                allowed="shards and index from the same model",
                try_="download the model again",
            )

    def names(self) -> list[str]:
        """Tensor names as stored."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """As stored: [out, in] for matrices."""
        self._need(name)
        return self._shapes[name]

    def stored(self, name: str) -> str:
        """safetensors' name of the tensor's dtype, e.g. BF16."""
        self._need(name)
        return self._types[name]

    def read(self, name: str, part: int | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor in its stored dtype whatever `dtype`, or entry `part` of its first dimension."""
        self._need(name)
        if self._pickled:
            return self._pickled[name] if part is None else self._pickled[name][part]
        # opened anew each time: an open handle keeps every page that was ever read mapped
        with _safe_open(self._where[name]) as shard:
            tensor: Tensor = shard.get_tensor(name) if part is None else shard.get_slice(name)[part]
        return tensor

    def place(self, name: str) -> tuple[Path, int] | None:
        """Where the tensor begins in its safetensors file; None for one that was pickled."""
        self._need(name)
        return None if self._pickled else (self._where[name], _first_byte(self._where[name], name))

    def fingerprint(self) -> str:
        """sha256 over names, dtypes, shapes and contents; the same however the model is cut into shards."""
        return cached_fingerprint(self._files, self._contents())

    def _contents(self) -> Iterator[tuple[str, str, tuple[int, ...], np.ndarray]]:
        for name in sorted(self._shapes):
            tensor = self.read(name).contiguous()
            yield name, str(tensor.dtype), self._shapes[name], tensor.reshape(-1).view(torch.uint8).numpy()

    def _need(self, name: str) -> None:
        if name not in self._shapes:
            raise CheckpointError(
                f"{self.path}: no tensor '{name}'",
                given=f"{len(self._shapes)} tensors",
                try_=nearest(name, self._shapes),
            )


def save(
    folder: Path,
    config: dict[str, Any],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write config.json and the weights into the existing `folder`: one file, or shards with an index.

    Streams: no more than one tensor is held. The caller makes it atomic by passing the folder of
    `base.files.new_folder`. `tensors` must not repeat a name."""
    shards: list[list[str]] = []
    total_bytes = 0
    shard = Shard(folder / "shard-00000")
    written: set[str] = set()
    try:
        for name, tensor in tensors:
            assert name not in written, f"tensor {name} twice"
            written.add(name)
            if shard.names and shard.nbytes + tensor.nbytes > max_shard_bytes:
                shard.close()
                shards.append(shard.names)
                shard = Shard(folder / f"shard-{len(shards):05d}")
            shard.add(name, tensor)
            total_bytes += tensor.nbytes
    except BaseException:
        shard.discard()
        raise
    shard.close()
    shards.append(shard.names)
    _name_shards(folder, shards, total_bytes)
    write_file(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _name_shards(folder: Path, shards: list[list[str]], total_bytes: int) -> None:
    """Shards get their final names once their number is known."""
    if len(shards) == 1:
        (folder / "shard-00000").rename(folder / SAFE)
        return
    weight_map = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{i:05d}").rename(folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    write_file(folder / f"{SAFE}.index.json", json.dumps(index, indent=2) + "\n")


def _weight_files(path: Path, name: str) -> tuple[list[Path], dict[str, str]]:
    """The weight files that go by `name`, and what the index promises is in which; ([], {}) when there are none."""
    index_file = path / f"{name}.index.json"
    if not index_file.exists():
        return ([path / name], {}) if (path / name).exists() else ([], {})
    promised = read_json(index_file, path).get("weight_map")
    if not isinstance(promised, dict) or not promised or not all(isinstance(file, str) for file in promised.values()):
        raise CheckpointError(f"{index_file}: no 'weight_map'", allowed="a mapping of tensor names to shards")
    shards = sorted(set(promised.values()))
    missing = [file for file in shards if Path(file).name != file or not (path / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(shards)} shards are missing",
            given=f"not there: {' '.join(missing[:4])}",
            allowed="every shard that the index names, in the same folder",
            try_="download the model again",
        )
    return [path / file for file in shards], promised


def read_json(file: Path, folder: Path) -> dict[str, Any]:
    """The object in one of the folder's JSON files. Raises CheckpointError for none."""
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: no {file.name}",
            given=" ".join(sorted(entry.name for entry in folder.iterdir())[:12]),
            allowed="a folder with config.json and safetensors",
            try_="download the model again, with its json files",
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, JSON without a bottom
        raise CheckpointError(f"{file}: not JSON", given=error, try_="download the file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: not a JSON object", given=type(content).__name__)
    return content


def _type_name(dtype: torch.dtype) -> str:
    """What safetensors calls a dtype: bfloat16 is BF16, int64 is I64."""
    return re.sub(r"^(b?[a-z])[a-z]*?(\d+)", r"\1\2", str(dtype).removeprefix("torch.")).upper()


def _first_byte(file: Path, name: str) -> int:
    """A safetensors file is the length of its header (8 bytes), the header (JSON), then the tensors end to end."""
    with file.open("rb") as source:
        size = int.from_bytes(source.read(8), "little")
        start: int = json.loads(source.read(size))[name]["data_offsets"][0]
    return 8 + size + start


def _safe_open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: damaged or cut off",
            given=f"{file.stat().st_size if file.exists() else 0:,} bytes: {error}",
            allowed="a complete safetensors file",
            try_="download the file again",
        ) from error


def _unpickle(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}: cannot be read as plain tensors",
            given=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            allowed="a complete file of torch.save with nothing but tensors, in torch's zip format",
            try_="a copy of the model with safetensors",
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file}: not a mapping of names to tensors", given=type(content).__name__)
    return content
