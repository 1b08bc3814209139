"""The bytes that each token adds to a text, read off the tokenizer's decoder.

A token may be half a character, so its bytes say what `decode` of that token alone cannot. Some decoders drop the space
that a text begins with, so a token has bytes at the start of a text and bytes inside it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorikeet.base.errors import TokenizerError

LOWEST = "▁"  # how sentencepiece writes a space


@dataclass(frozen=True)
class Spelling:
    """Bytes by id; a control token, and an id without a token, has none."""

    inside: Sequence[bytes]
    first: Sequence[bytes]  # of the first token of a text


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte: itself where it is visible, else the next free one from 256 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]


def spelling(vocab: Mapping[str, int], control: Collection[int], decoder: Mapping[str, Any] | None) -> Spelling:
    """The bytes of each token of `vocab`. `decoder` as in tokenizer.json. Raises TokenizerError for a decoder that
    gives tokens no bytes of their own."""
    stages = _stages(decoder)
    inside = [b""] * (max(vocab.values(), default=-1) + 1)
    first = list(inside)
    for text, id in vocab.items():
        if id not in control:
            inside[id], first[id] = _bytes(text, stages, False), _bytes(text, stages, True)
    return Spelling(inside, first)


def _stages(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    found = [] if decoder is None else [decoder]
    while any(stage["type"] == "Sequence" for stage in found):
        nested = [stage["decoders"] if stage["type"] == "Sequence" else [stage] for stage in found]
        found = [stage for stages in nested for stage in stages]
    kinds = [stage["type"] for stage in found]
    odd = [kind for kind in kinds if kind not in ("ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip")]
    odd += [f"Replace of {stage['pattern']}" for stage in found if "String" not in stage.get("pattern", {"String": ""})]
    if odd or not found:
        raise TokenizerError(
            "the bytes of this tokenizer's tokens are not known",
            given=f"a decoder with {' and '.join(odd)}" if found else "a tokenizer without a decoder",
            allowed="byte-level BPE, or sentencepiece's pieces",
        )
    return found


def _bytes(text: str, stages: Sequence[Mapping[str, Any]], first: bool) -> bytes:
    """What one token becomes. Behind Fuse a stage sees the whole text, so only its first token meets Strip."""
    fused, piece = False, text
    for stage in stages:
        kind = stage["type"]
        if kind == "ByteLevel":
            return _from_letters(piece)
        if kind == "ByteFallback" and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return _stripped(bytes([int(piece[3:5], 16)]), stages, first)
        if kind == "Fuse":
            fused = True
        elif kind == "Replace":
            piece = piece.replace(stage["pattern"]["String"], stage["content"])
        elif kind == "Metaspace":
            drops = first and stage.get("prepend_scheme") != "never"
            piece = piece.replace(stage.get("replacement", LOWEST), "" if drops else " ")
        elif kind == "Strip" and (first or not fused):
            piece = _strip(piece, stage["content"], stage["start"])
    return piece.encode("utf-8", errors="replace")


def _stripped(byte: bytes, stages: Sequence[Mapping[str, Any]], first: bool) -> bytes:
    """A space that is written as a byte is dropped at the start like any other."""
    drops = first and any(stage["type"] == "Strip" and stage["start"] and stage["content"] == " " for stage in stages)
    return b"" if drops and byte == b" " else byte


def _strip(piece: str, content: str, times: int) -> str:
    for _ in range(times):
        piece = piece.removeprefix(content)
    return piece


_BYTES = {letter: byte for byte, letter in enumerate(byte_letters())}


def _from_letters(piece: str) -> bytes:
    """A token that is added as it stands may hold what is no letter for a byte: then it is its own UTF-8."""
    if all(letter in _BYTES for letter in piece):
        return bytes(_BYTES[letter] for letter in piece)
    return piece.encode("utf-8", errors="replace")
