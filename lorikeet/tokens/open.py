"""The tokenizer that belongs to a model on disk."""

from __future__ import annotations

from pathlib import Path

from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.checkpoints.gguf import GGUFCheckpoint
from lorikeet.tokens import gguf, huggingface
from lorikeet.tokens._contract import Tokenizer


def open_tokenizer(path: str | Path, checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer at `path`, which is where the model is or a folder with another tokenizer for it.

    A tokenizer.json in that folder comes first, then a GGUF file's own metadata. Raises TokenizerError."""
    path = Path(path).expanduser()
    if isinstance(checkpoint, GGUFCheckpoint) and not (path / "tokenizer.json").is_file():
        return gguf.load(checkpoint)
    return huggingface.load(path)
