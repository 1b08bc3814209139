"""Conversations as the model will see them, for eyes: trained tokens coloured, control tokens visible, and what was
cut away, from the ledger's accounts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
from rich.panel import Panel
from rich.text import Text

from lorikeet.base.nouns import Conversation, Origin
from lorikeet.data.ledger import entries
from lorikeet.data.picture import CONTEXT, CUT, TRAINED, WEIGHT, Shown
from lorikeet.data.picture import Piece as Look
from lorikeet.data.provenance import Spelled
from lorikeet.data.truncate import Encoder, Piece
from lorikeet.data.walk import Walked

_STYLES = {TRAINED: "bold green", CONTEXT: "dim", CUT: "red strike", WEIGHT: "yellow"}
_OPEN, _CLOSE = "\u27e6", "\u27e7"  # around what is trained, where no colour says it


def shown(row: Walked, encoder: Encoder, *, tokens: bool = False) -> Iterator[Shown]:
    """Each example of the row, and what was cut away or why there is none. `tokens`: one piece of text for each token,
    with a hint that says where it comes from; else one for each run of tokens that look the same."""
    if row.error is not None or row.conversation is None:
        assert row.error is not None
        yield Shown(f"{_place(row.origin)}  cannot be used", [Look(row.error.what, CUT)])
        return
    kept = [piece for piece in row.pieces if piece.dropped is None]
    for piece in kept:
        found = entries(piece, row.conversation, encoder)
        title = f"{_place(row.origin)}  {len(piece.tokens)} tokens, {int(np.count_nonzero(piece.weights))} trained"
        title += f", cut from {piece.whole}" if piece.cut else ""
        looks = list(_each_token(piece, found, encoder) if tokens else _runs(piece, encoder))
        yield Shown(title, [*looks, *_lost([found], row.conversation)] if piece.cut else looks)
    for piece in row.pieces:
        if piece.dropped is not None:
            text = encoder.tokenizer.decode(piece.tokens.tolist(), skip_control=False)
            yield Shown(f"{_place(row.origin)}  {piece.whole} tokens, left out: {piece.dropped}", [Look(text, CUT)])


def _place(origin: Origin) -> str:
    """The origin as it is seen from the current folder, where it lies in it: titles have a line's room."""
    file, here = Path(origin.file), Path.cwd()
    return str(replace(origin, file=str(file.relative_to(here))) if file.is_relative_to(here) else origin)


def _runs(piece: Piece, encoder: Encoder) -> Iterator[Look]:
    control = set(encoder.tokenizer.control.values())
    ids = piece.tokens.tolist()
    weighted = 1.0  # the weight last written: runs of the same weight are not labelled again
    position = 0
    for (weight, is_control), run in groupby((w, token in control) for w, token in zip(piece.weights.tolist(), ids)):
        count = len(list(run))
        text = encoder.tokenizer.decode(ids[position : position + count], skip_control=False)
        position += count
        if weight not in (0.0, 1.0) and weight != weighted:
            yield Look(f"⟨{weight:g}⟩", WEIGHT)
        weighted = weight if weight > 0 else 1.0
        yield Look(text, TRAINED if weight > 0 else CONTEXT, is_control)


def _each_token(piece: Piece, found: Sequence[Spelled], encoder: Encoder) -> Iterator[Look]:
    control = set(encoder.tokenizer.control.values())
    ids = piece.tokens.tolist()
    start = 0
    for end in range(1, len(ids) + 1):
        text = encoder.tokenizer.decode(ids[start:end], skip_control=False)
        # several tokens are one character: they are shown together
        if text.endswith("\ufffd") and end < len(ids) and ids[end] not in control and end - start < 4:
            continue
        weight = float(piece.weights[start])
        hint = f"token {ids[start:end]} at {start}, weight {weight:g}; {_whence(found[start])}"
        yield Look(text, TRAINED if weight > 0 else CONTEXT, ids[start] in control, hint)
        start = end


def _whence(one: Spelled) -> str:
    if not one.ranges:
        return "the template's" + (f", ends message {one.message}" if one.part == "end" else "")
    return ", ".join(f"message {message}, characters {start} to {end}" for message, start, end in one.ranges)


def _lost(examples: Sequence[Sequence[Spelled]], source: Conversation) -> Iterator[Look]:
    """The characters that no token of the examples spells, message by message."""
    for index, message in enumerate(source.messages):
        left = np.ones(len(message.content), bool)
        for one in (one for found in examples for one in found):
            for number, start, end in one.ranges:
                if number == index:
                    left[start:end] = False
        text = "".join(character for character, lost in zip(message.content, left.tolist()) if lost)
        if text.strip():
            short = text if len(text) <= 200 else f"{text[:120]} [... {len(text) - 200:,} more ...] {text[-80:]}"
            yield Look(f"\nnot in it, of message {index} ({message.role}): ", CONTEXT)
            yield Look(short, CUT)


def panel(one: Shown, *, brackets: bool = False) -> Panel:
    """For a terminal. `brackets` enclose what is trained, where there are no colours."""
    text = Text(no_wrap=False, overflow="fold")  # a console that does not wrap would cut the lines off
    inside = False
    for piece in one.pieces:
        if brackets and piece.look != WEIGHT and (piece.look == TRAINED) != inside:
            inside = piece.look == TRAINED
            text.append(_OPEN if inside else _CLOSE)
        text.append(piece.text, f"{_STYLES[piece.look]} reverse" if piece.control else _STYLES[piece.look])
    if inside:
        text.append(_CLOSE)
    return Panel(text, title=Text(one.title), title_align="left")


def legend(*, brackets: bool = False) -> Text:
    """The line that explains the colours, or the brackets that stand for them."""
    if brackets:
        return Text(f"{_OPEN}trained{_CLOSE}  ⟨weight⟩ where it is not 1")
    parts = (("trained", TRAINED), ("context", CONTEXT), ("control token", CONTEXT), ("cut", CUT))
    text = Text()
    for name, look in parts:
        text.append(name, _STYLES[look] + (" reverse" if name == "control token" else ""))
        text.append("  ")
    return text.append("⟨weight⟩ where it is not 1")
