"""The tokenizer that belongs to a model on disk: each kind of this folder says whether it is there."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from lorikeet.base.errors import TokenizerError
from lorikeet.base.kinds import kinds
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.tokens._contract import Tokenizer


def open_tokenizer(path: str | Path, checkpoint: Checkpoint | None) -> Tokenizer:
    """The tokenizer at `path`, which is where the model is or a folder with another tokenizer for it.

    A tokenizer.json in that folder comes first, then a GGUF file's own metadata, then whatever other kind's files lie
    there. Raises TokenizerError for none, for two that contradict each other, and for one that is broken."""
    path = Path(path).expanduser()
    found = {name: module for name, module in _kinds().items() if module.recognises(path, checkpoint)}
    if "gguf" in found:  # a tokenizer.model beside a GGUF file is what that file was made from
        found = {"gguf": found["gguf"]}
    if len(found) > 1:
        raise TokenizerError(
            f"{path}: tokenizers of {len(found)} kinds, and no tokenizer.json to say which one counts",
            given=" and ".join(f"{name} ({', '.join(module.files(path))})" for name, module in found.items()),
            allowed="one tokenizer",
            try_="move the files that do not belong to the model elsewhere",
        )
    if not found:
        raise TokenizerError(
            f"{path}: no tokenizer.json, nor a tokenizer of another kind",
            given=" ".join(sorted(entry.name for entry in path.iterdir())[:12]) if path.is_dir() else "no such folder",
            allowed="tokenizer.json, a sentencepiece tokenizer.model, a *.tiktoken ranks file, or a GGUF file",
            try_=f"copy the base model's tokenizer files into {path}",
        )
    (module,) = found.values()
    tokenizer: Tokenizer = module.load(path, checkpoint)
    return tokenizer


def _kinds() -> dict[str, ModuleType]:
    modules = {name: importlib.import_module(f"lorikeet.tokens.{name}") for name in kinds("lorikeet.tokens")}
    # this file stands in the same folder and is no kind
    return {name: module for name, module in modules.items() if hasattr(module, "recognises")}
