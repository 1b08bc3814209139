"""The space that a tokenizer puts before text, where in a tokenizer.json it is written, and the same without it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Prefix:
    """`at`: before each text between control tokens, at the very start, or nowhere. `without` are the keys of the
    tokenizer.json that change when it goes."""

    at: Literal["always", "first", "never"]
    without: dict[str, Any]


def find_prefix(description: dict[str, Any]) -> Prefix:
    """The prefix of a tokenizer.json's content, which is left as it is."""
    without = {key: copy.deepcopy(description.get(key)) for key in ("normalizer", "pre_tokenizer")}
    found: set[str] = set()
    for key in without:
        without[key] = _cut(without[key], found)
    return Prefix("always" if "always" in found else "first" if "first" in found else "never", without if found else {})


def _cut(step: dict[str, Any] | None, found: set[str]) -> dict[str, Any] | None:
    """`step` without what puts a space before text; when it does so is added to `found`."""
    if step is None:
        return None
    kind = step.get("type")
    for inner in ("normalizers", "pretokenizers"):
        if inner in step:
            step[inner] = [kept for kept in (_cut(part, found) for part in step[inner]) if kept is not None]
    if kind == "Prepend" or (kind == "Replace" and str(step["pattern"].get("Regex", "")).startswith(r"\A(?!")):
        found.add("always")
        return None
    if kind == "Metaspace" and step.get("prepend_scheme", "always") != "never":
        found.add(step.get("prepend_scheme", "always"))
        step["prepend_scheme"] = "never"
    if kind == "ByteLevel" and step.get("add_prefix_space"):
        found.add("always")
        step["add_prefix_space"] = False
    return step
