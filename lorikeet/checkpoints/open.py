"""Open a model on disk, whatever kind it is: each kind's `recognises` is asked in turn."""

from __future__ import annotations

import importlib
from pathlib import Path

from lorikeet.base.errors import CheckpointError
from lorikeet.base.kinds import kinds
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.checkpoints._unfinished import explained, refuse_pointers


def open_checkpoint(path: str | Path, *, allow_pickle: bool = False) -> Checkpoint:
    """The checkpoint at `path`: a Hugging Face folder, a GGUF file, or a folder of Meta's.

    Raises CheckpointError when there is nothing, something else, or something damaged or half downloaded. Pickled
    weights are refused unless `allow_pickle`; even then nothing but tensors is unpickled."""
    path = Path(path).expanduser()
    refuse_pointers(path)
    try:
        return _open(path, allow_pickle)
    except CheckpointError as error:
        told = explained(error, path)
        if told is None:
            raise
        raise told from error


def _open(path: Path, allow_pickle: bool) -> Checkpoint:
    for name in kinds("lorikeet.checkpoints"):
        module = importlib.import_module(f"lorikeet.checkpoints.{name}")
        # this file and download.py stand in the same folder and are no kinds
        if hasattr(module, "recognises") and module.recognises(path):
            checkpoint: Checkpoint = module.open(path, allow_pickle=allow_pickle)
            return checkpoint
    allowed = "a folder with config.json and *.safetensors, or one .gguf file"
    if not path.exists():
        raise CheckpointError(
            f"no model at '{path}'", given="nothing is there", allowed=allowed, try_="lorikeet download smollm2-135m"
        )
    if path.is_file():
        try_ = str(path.parent) if path.suffix in (".safetensors", ".json", ".bin") else None
        raise CheckpointError(
            f"'{path}' is not a model", given=f"a {path.suffix or 'plain'} file", allowed=allowed, try_=try_
        )
    inside = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    raise CheckpointError(
        f"'{path}' holds no model",
        given=" ".join(inside[:12]) + (f" ... ({len(inside)} in all)" if len(inside) > 12 else "") or "an empty folder",
        allowed=allowed,
        try_=next((str(entry) for entry in sorted(path.glob("*.gguf"))), _merged_first(path)),
    )


def _merged_first(path: Path) -> str | None:
    """What to do with a run, or an adapter's folder, where a model is wanted; None for other folders."""
    if any((folder / "adapter_config.json").is_file() for folder in (path, path / "adapter")):
        return f"lorikeet merge {path} {path}-merged, and that folder"
    return None
