"""Meta's own checkpoints: params.json and consolidated.00.pth ... consolidated.NN.pth, one file for each of the devices
that Meta ran the model on.

Read as the Hugging Face folder that they correspond to, name by name and number by number: matrices are joined from
their parts, and the rows of q and k put in that order, in one copy while a tensor is asked for. So families, loading,
quantisation and fingerprints need no line for this format. Layout: _meta_layout.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorikeet.base.errors import CheckpointError, nearest
from lorikeet.base.tensor_file import FLOATS
from lorikeet.checkpoints import _meta_layout as layout_of
from lorikeet.checkpoints._fingerprint import cached_fingerprint
from lorikeet.checkpoints._torch_file import StoredTensor, entries

PARAMS, SHARD = "params.json", re.compile(r"consolidated\.(\d\d)\.pth")


def recognises(path: Path) -> bool:
    """A folder with consolidated.NN.pth and no config.json."""
    return path.is_dir() and not (path / "config.json").exists() and bool(_shards(path))


def open(path: Path, *, allow_pickle: bool = False) -> MetaCheckpoint:
    """Open the folder. Its pickles are read without being run, whatever `allow_pickle` says. Raises CheckpointError."""
    return MetaCheckpoint(path)


class MetaCheckpoint:
    """A folder of Meta's. `read` may alias the mapped file."""

    layout = "meta"

    def __init__(self, path: Path):
        self.path = path
        self.params = _params(path)
        self.files = _numbered(path)
        shards = [entries(file) for file in self.files]
        self._parts = _joined_by_name(path, shards)
        self._vocabulary = self._embedding_by_rows()
        head = "lm_head.weight" in self._parts
        # the width of a head comes before the config: q and k need it
        self.head_dim = self.params["dim"] // self.params["n_heads"]
        vocabulary, _ = self.shape("model.embed_tokens.weight")
        width, _ = self.shape("model.layers.0.mlp.gate_proj.weight")
        dtype = self._parts["model.embed_tokens.weight"][0].dtype
        self.config: dict[str, Any] = layout_of.config(self.params, vocabulary, width, dtype, not head)
        self._check_shapes()

    def names(self) -> list[str]:
        """Tensor names as Hugging Face folders have them."""
        return list(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        parts, dimension = self._need(name), self.split(name)
        shape = list(parts[0].shape)
        if dimension is not None:
            shape[dimension] = sum(part.shape[dimension] for part in parts)
        return tuple(shape)

    def stored(self, name: str) -> str:
        """safetensors' name of the tensor's dtype."""
        return FLOATS[self._need(name)[0].dtype]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that `read` gives."""
        return self._need(name)[0].dtype

    def split(self, name: str) -> int | None:
        """Over which dimension the files share a tensor."""
        return layout_of.split_dimension(name, vocabulary=self._vocabulary)

    def read(self, name: str, part: int | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
        """The whole tensor in its stored dtype whatever `dtype`, or entry `part` of its first dimension."""
        parts, dimension = self._need(name), self.split(name)
        turned = layout_of.rotary(name)
        if dimension is None or (len(parts) == 1 and not turned):
            whole = parts[0].read()
            return whole if part is None else whole[part]
        whole = torch.empty(self.shape(name), dtype=parts[0].dtype)
        start = 0
        for one in parts:
            rows = one.read()
            place = whole.narrow(dimension, start, rows.shape[dimension])
            start += rows.shape[dimension]
            if turned:
                place.view(-1, 2, self.head_dim // 2, rows.shape[1]).copy_(layout_of.halves(rows, self.head_dim))
            else:
                place.copy_(rows)
            del rows
        return whole if part is None else whole[part]

    def place(self, name: str) -> tuple[Path, int] | None:
        """Where the tensor begins, if one file has all of it in the order of its shape."""
        parts = self._need(name)
        whole = len(parts) == 1 and not layout_of.rotary(name)
        return (parts[0].file, parts[0].start) if whole or self.split(name) is None else None

    def fingerprint(self) -> str:
        """sha256 as of the Hugging Face folder with the same weights, however many files there are."""
        return cached_fingerprint(self.files, self._contents())

    def _contents(self) -> Iterator[tuple[str, str, tuple[int, ...], np.ndarray]]:
        for name in sorted(self._parts):
            tensor = self.read(name).contiguous()
            yield name, str(tensor.dtype), self.shape(name), tensor.reshape(-1).view(torch.uint8).numpy()

    def _need(self, name: str) -> list[StoredTensor]:
        if name not in self._parts:
            close = nearest(name, self._parts)
            raise CheckpointError(f"{self.path}: no tensor '{name}'", given=f"{len(self._parts)} tensors", try_=close)
        return self._parts[name]

    def _embedding_by_rows(self) -> bool:
        for name in ("model.embed_tokens.weight", "model.layers.0.mlp.gate_proj.weight"):
            if len(self._need(name)[0].shape) != 2:
                raise CheckpointError(f"{self.path}: '{name}' is no matrix", given=self._need(name)[0].shape)
        return self._need("model.embed_tokens.weight")[0].shape[1] == self.params["dim"]

    def _check_shapes(self) -> None:
        """Raise CheckpointError where the parts do not add up to what params.json says."""
        config = self.config
        width, head = config["hidden_size"], self.head_dim
        q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
        ffn, vocabulary = config["intermediate_size"], config["vocab_size"]
        wanted = {
            "embed_tokens": (vocabulary, width), "lm_head": (vocabulary, width), "q_proj": (q, width),
            "k_proj": (kv, width), "v_proj": (kv, width), "o_proj": (width, q), "gate_proj": (ffn, width),
            "up_proj": (ffn, width), "down_proj": (width, ffn),
        }  # fmt: skip
        for name, parts in self._parts.items():
            expected = wanted.get(name.split(".")[-2], (width,))
            uneven = layout_of.rotary(name) and any(part.shape[0] % head for part in parts)
            if len({len(part.shape) for part in parts} | {len(expected)}) > 1 or self.shape(name) != expected or uneven:
                raise CheckpointError(
                    f"{self.path}: the parts of '{layout_of.to_meta(name)}' do not make what {PARAMS} says",
                    given=" + ".join(str(list(part.shape)) for part in parts[:8]),
                    allowed=f"{list(expected)} in all, in whole heads",
                    try_="the params.json and the files that belong together",
                )


def _shards(path: Path) -> list[Path]:
    return sorted(file for file in path.glob("consolidated.*.pth") if SHARD.fullmatch(file.name))


def _numbered(path: Path) -> list[Path]:
    """The files, which are numbered from 00 without a gap."""
    files = _shards(path)
    there = [int(file.name.split(".")[1]) for file in files]
    missing = sorted(set(range(max(there) + 1)) - set(there))
    if missing:
        raise CheckpointError(
            f"{path}: parts of the model are missing",
            given=" ".join(f"no consolidated.{number:02d}.pth" for number in missing[:4]),
            allowed=f"consolidated.00.pth to consolidated.{max(there):02d}.pth",
            try_="download the model again",
        )
    return files


def _params(path: Path) -> dict[str, Any]:
    file = path / PARAMS
    if not file.is_file():
        raise CheckpointError(
            f"{path}: no {PARAMS}",
            given=" ".join(sorted(entry.name for entry in path.iterdir())[:12]),
            allowed=f"a folder with consolidated.00.pth and its {PARAMS}",
            try_="download the model again, with its json file",
        )
    try:
        params = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not JSON", given=error, try_="download the file again") from error
    if not isinstance(params, dict):
        raise CheckpointError(f"{file}: not a JSON object", given=type(params).__name__)
    layout_of.check(params, file)
    return params


def _joined_by_name(path: Path, shards: list[dict[str, StoredTensor]]) -> dict[str, list[StoredTensor]]:
    """Each tensor's parts in the order of the files, by its name in a Hugging Face folder."""
    found: dict[str, list[StoredTensor]] = {}
    for name in shards[0]:
        if layout_of.DERIVED.search(name):
            continue
        try:
            found[layout_of.to_hf(name)] = [shard[name] for shard in shards]
        except (KeyError, ValueError):
            lacking = next((i for i, shard in enumerate(shards) if name not in shard), None)
            what = "is no tensor of a dense Llama" if lacking is None else f"is not in consolidated.{lacking:02d}.pth"
            raise CheckpointError(
                f"{path}: '{name}' {what}",
                given=f"{len(shards)} files",
                allowed="files of one model: tok_embeddings, layers.N.attention.wq ... output",
            ) from None
    # files may hold tensors in any order; models are saved in the order of their layers
    order = {name: i for i, name in enumerate(sorted(found, key=_position))}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def _position(name: str) -> tuple[int, int, str]:
    if name.startswith("model.layers."):
        return 1, int(name.split(".")[2]), name
    return (0 if name.startswith("model.embed_tokens") else 2), 0, name
