"""How replies of a model are sampled, as its generation_config.json says: the file that transformers and vLLM read.

The names are transformers'. `do_sample: false` is temperature 0 here; a file without it is taken at its word, as vLLM
does, because many state a temperature and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lorikeet.base.log import note
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.tokens._folder import read_json

FILE = "generation_config.json"
_SAMPLED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # called the same there
_NAMES = (*_SAMPLED, "max_new_tokens")


def read(folder: Path) -> dict[str, Any]:
    """The options of `generate` that the file in `folder` states; {} where there is none. What cannot be such an option
    is left out, with a note. Raises TokenizerError for a file that is no JSON object."""
    file = folder / FILE
    said = read_json(file) if folder.is_dir() else {}
    found = {name: said[name] for name in _NAMES if said.get(name) is not None}
    if said.get("do_sample") is False:
        found["temperature"] = 0.0
    if found.get("top_k") == -1:  # vLLM's word for all
        found["top_k"] = 0
    kept: dict[str, Any] = {}
    for name, value in found.items():
        try:
            kept[name] = getattr(GenerateOptions.model_validate({name: value}), name)
        except ValidationError as error:
            note(f"{file}: {name} is left out: {value!r}: {error.errors()[0]['msg']}")
    return kept


def written(options: Mapping[str, Any]) -> dict[str, Any]:
    """The file's keys for options of `generate`, of which `read` makes the same. What transformers has no name for is
    left out; it refuses to save a temperature where nothing is drawn."""
    found = {name: options[name] for name in _NAMES if name in options}
    if found.get("temperature") == 0:
        kept = {name: found[name] for name in ("repetition_penalty", "max_new_tokens") if name in found}
        return {"do_sample": False} | kept
    # transformers draws from the 50 most likely tokens where top_k is not stated
    return ({"do_sample": True, "top_k": 0} if "temperature" in found else {}) | found
