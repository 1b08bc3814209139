"""A model before its weights are here: config.json says what the network is, and planning needs no more.

What is downloaded is opened as it is (only headers are read). A folder may hold config.json alone, and a source that
can hand out settings without weights is asked for them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorikeet.base.errors import CheckpointError, DownloadError
from lorikeet.base.files import cache_dir
from lorikeet.checkpoints import download, hf
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.checkpoints.open import open_checkpoint

WEIGHTS = ("*.safetensors", "*.bin")  # an index alone promises weights that are not here


class SettingsOnly:
    """A folder with config.json and no weights, as a checkpoint without tensors."""

    layout = "hf"

    def __init__(self, path: Path, config: dict[str, Any]):
        self.path, self.config = path, config

    def names(self) -> list[str]:
        """None."""
        return []

    def shape(self, name: str) -> tuple[int, ...]:
        """There is none."""
        raise self._nothing(name)

    def stored(self, name: str) -> str:
        """There is none."""
        raise self._nothing(name)

    def read(self, name: str, part: int | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
        """There is none."""
        raise self._nothing(name)

    def place(self, name: str) -> tuple[Path, int] | None:
        """Nowhere."""
        return None

    def fingerprint(self) -> str:
        """That of the settings."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    def _nothing(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: no weights in this folder", given=f"'{name}' is asked for")


def open_settings(name: str, *, allow_pickle: bool = False) -> Checkpoint:
    """The model that a recipe names, with its weights where they are here already.

    Raises CheckpointError for what is no model, DownloadError where the settings cannot be had without the weights."""
    path = download.locate(name)
    if path is None:
        path = _fetched(name)
    if path.is_dir() and (path / "config.json").is_file() and not any(any(path.glob(mark)) for mark in WEIGHTS):
        return SettingsOnly(path, hf.read_json(path / "config.json", path))
    return open_checkpoint(path, allow_pickle=allow_pickle)


def _fetched(name: str) -> Path:
    source = download.source_of(name)
    settings = getattr(source, "settings", None)
    if settings is None:
        raise DownloadError(
            f"'{name}' is not downloaded, and its source hands out no settings without the weights",
            given=name,
            allowed="a model that is here, a folder with its config.json, or hf:ORG/NAME",
            try_=f"lorikeet download {name}",
        )
    path: Path = settings(cache_dir() / "settings")
    return path
