r"""Text to ids by its words: byte-level tokenizers meet the same words again and again, so their ids are kept.

Such a tokenizer cuts text with a regular expression before it merges bytes. With the expressions known here no piece
reaches over a place where a space follows a character that is none, and what is cut behind that place does not depend
on what stands before it, nor the other way round. So the ids of a text are the ids of its words (each with the spaces
before it), one after the other, and a dictionary answers most of them. Exactly these expressions are taken, read and
judged one alternative at a time; a tokenizer with any other one encodes whole texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

Encode = Callable[[list[str]], list[bytes]]

_MOST_WORDS = 1 << 17  # kept, at about 150 bytes each; then they are learned anew
_ENDINGS = "'s|'t|'re|'ve|'m|'ll|'d"
# alternatives whose match never holds a space behind another character, and that look at nothing behind such a place
_ALTERNATIVES = {
    *_ENDINGS.split("|"),
    f"(?i:{_ENDINGS})",
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    r" ?\p{L}+",
    r" ?\p{N}+",
    r" ?[^\s\p{L}\p{N}]+",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
}
_DIGITS = {r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", "[0-9]", r"\d"}
_EVERYTHING = {r"\s+", r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"}
_SPACE_INSIDE = re.compile(r"\s ")  # a space that does not begin a word
_BORDER = re.compile(r"(?<=\S)(?= )")


class Words:
    """Ids of texts, through `encode` (of many texts at once) for words not met before."""

    def __init__(self, encode: Encode):
        self._encode = encode
        self._first: dict[str, bytes] = {}  # what a text begins with
        self._later: dict[str, bytes] = {}  # what follows a space, without that space

    def ids(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text, as int32 in this machine's order."""
        pieces = [_words(text) for text in texts]
        self._learn(self._first, {words[0] for words in pieces}, "")
        self._learn(self._later, set[str]().union(*[words[1:] for words in pieces]), " ")
        first, later = self._first, self._later
        found = [first[words[0]] + b"".join([later[word] for word in words[1:]]) for words in pieces]
        for known in (first, later):
            if len(known) > _MOST_WORDS:
                known.clear()
        return found

    def _learn(self, known: dict[str, bytes], words: set[str], before: str) -> None:
        new = list(words.difference(known))
        if new:
            known.update(zip(new, self._encode([before + word for word in new])))


def _words(text: str) -> list[str]:
    """The text in pieces, each but the first without the space that it begins with."""
    if not _SPACE_INSIDE.search(text):
        return text.split(" ")
    first, *others = _BORDER.split(text)
    return [first, *[word[1:] for word in others]]


def made_of_words(description: dict[str, Any]) -> bool:
    """Whether the tokenizer of this tokenizer.json gives the ids of a text word by word."""
    normalizer, model = description.get("normalizer"), description["model"]
    if normalizer is not None and normalizer.get("type") != "NFC":  # a space composes with nothing before it
        return False
    if model.get("type") != "BPE" or model.get("dropout"):
        return False
    for token in description["added_tokens"]:
        spread = re.search(r"\S ", token["content"])  # it would be in two words
        if spread or token["lstrip"] or token["rstrip"] or token["single_word"]:
            return False
    steps = _steps(description.get("pre_tokenizer"))
    return bool(steps) and steps.count("words") == 1 and set(steps) <= {"words", "digits", "bytes"} and "bytes" in steps


def _steps(step: dict[str, Any] | None) -> list[str]:
    """What a pre-tokenizer does, a word for each step."""
    kind = (step or {}).get("type")
    if step is None:
        return []
    if kind == "Sequence":
        return [name for inner in step["pretokenizers"] for name in _steps(inner)]
    if kind == "Digits":
        return ["digits"]
    if kind == "ByteLevel":
        return ["other"] if step.get("add_prefix_space") else ["words", "bytes"] if step["use_regex"] else ["bytes"]
    pattern = step.get("pattern", {}).get("Regex") if kind == "Split" else None
    if pattern is None or step["behavior"].lower() != "isolated" or step["invert"]:
        return ["other"]
    listed = _alternatives(pattern)
    if set(listed) <= _DIGITS:
        return ["digits"]
    whole = r"\s+" in listed and any(mark in listed for mark in _EVERYTHING - {r"\s+"})
    return ["words"] if whole and set(listed) <= _ALTERNATIVES | _DIGITS else ["other"]


def _alternatives(pattern: str) -> list[str]:
    """The pattern's alternatives: cut at each | that is in no group and no class."""
    found, depth, inside, start, at = list[str](), 0, False, 0, 0
    while at < len(pattern):
        letter = pattern[at]
        if letter == "\\":
            at += 1
        elif inside:
            inside = letter != "]"
        elif letter == "[":
            inside = True
        elif letter in "()":
            depth += 1 if letter == "(" else -1
        elif letter == "|" and depth == 0:
            found.append(pattern[start:at])
            start = at + 1
        at += 1
    return [*found, pattern[start:]]
