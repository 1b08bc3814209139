"""The label ledger: where every trained token comes from, and what became of every character.

A line for each row. Each trained token has its place in the example, its id and weight, and the message and range of
characters it spells (none for the template's own text, such as the token that ends a reply). Each character of a
message is one of

    trained    a token with a weight spells it, in at least one example of the row
    context    a token without one does
    cut        no token does: it lies past max_length, or the template leaves it out (spaces around a text, a thought;
               white space that a control token beside it takes counts as that)
    rejected   nothing of its row is learned

so that characters in = trained + context + cut + rejected, row by row. A row that could not be read has the characters
of all its columns, rejected. Calls of tools and descriptions of tools are written by the template and are no message's
characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from lorikeet.base.nouns import Conversation, Example
from lorikeet.data.encode import encode_conversation
from lorikeet.data.provenance import Spelled, spelled
from lorikeet.data.truncate import Encoder, Piece
from lorikeet.data.walk import Walked

COLUMNS = ("position", "token", "weight", "message", "start", "end", "part")
FATES = ("trained", "context", "cut", "rejected")
_CUT, _CONTEXT, _TRAINED = 0, 1, 2


@dataclass
class Totals:
    """Sums over all rows."""

    rows: int = 0
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    trained_by: Counter[str] = field(default_factory=Counter)  # what trained tokens spell -> how many
    characters: Counter[str] = field(default_factory=Counter)  # in, and the four fates
    cut_by: Counter[str] = field(default_factory=Counter)  # max_length, template
    roles: dict[str, Counter[str]] = field(default_factory=dict)  # role -> fates of its messages' characters
    rejected: Counter[str] = field(default_factory=Counter)  # reason -> rows

    def add(self, line: dict[str, Any]) -> None:
        """Add a row's line."""
        self.rows += 1
        self.characters.update(line["characters"])
        self.cut_by.update(line["cut_by"])
        if "rejected" in line:
            self.rejected[line["rejected"]] += 1
        for message in line["messages"]:
            self.roles.setdefault(message["role"], Counter()).update({name: message[name] for name in FATES})
        for example in line["examples"]:
            self.examples += 1
            self.tokens += example["tokens"]
            of_tokens = {entry[0]: entry for entry in reversed(example["trained"])}.values()  # one may have two ranges
            self.trained_tokens += len(of_tokens)
            self.trained_by.update("a message" if entry[4] is not None else entry[-1] for entry in of_tokens)

    @property
    def balance(self) -> int:
        """Characters that are unaccounted for: 0."""
        return self.characters["in"] - sum(self.characters[fate] for fate in FATES)

    def as_dict(self) -> dict[str, Any]:
        """For the summary."""
        return {
            "rows": self.rows,
            "examples": self.examples,
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "trained_tokens_by": dict(self.trained_by),
            "characters": {name: self.characters[name] for name in ("in", *FATES)},
            "balance": self.balance,
            "cut_by": dict(self.cut_by),
            "roles": {role: dict(fates) for role, fates in self.roles.items()},
            "rejected": dict(self.rejected),
        }


def lines(
    rows: Iterable[Walked],
    encoder: Encoder,
    stored: dict[str, Iterator[Example]] | None = None,
) -> Iterator[dict[str, Any]]:
    """A row's line, for each row. With `stored`, the examples that were prepared, by side and in their sources' order:
    each line's examples are compared with them, token by token, and get the side they are on."""
    waiting = {side: chain(examples) for side, examples in (stored or {}).items()}
    heads = {side: next(examples, None) for side, examples in waiting.items()}
    for row in rows:
        line = line_of(row, encoder)
        for example, piece in zip(line["examples"], (piece for piece in row.pieces if piece.dropped is None)):
            example["side"] = row.side
            if stored is not None:
                example["side"] = side = next(side for side, head in heads.items() if _same(head, row, piece))
                heads[side] = next(waiting[side], None)
        yield line
    assert not any(heads.values()), "every example that was prepared stands in the ledger"


def _same(stored: Example | None, row: Walked, piece: Piece) -> bool:
    return (
        stored is not None
        and stored.origin == row.origin
        and np.array_equal(stored.tokens, piece.tokens)
        and np.array_equal(stored.weights, piece.weights)
    )


def line_of(row: Walked, encoder: Encoder) -> dict[str, Any]:
    """A row's line: file, row, line, characters (in and each fate), cut_by, messages, examples, perhaps rejected."""
    kept = [piece for piece in row.pieces if piece.dropped is None] if row.error is None else []
    messages = row.conversation.messages if row.conversation is not None else ()
    fates = [np.zeros(len(message.content), np.uint8) for message in messages]
    examples = []
    for piece in kept:
        assert row.conversation is not None
        examples.append(_example(piece, entries(piece, row.conversation, encoder), fates))
    accounts = [_account(fate, bool(kept)) for fate in fates]
    characters = {"in": row.characters()} | {fate: sum(one[fate] for one in accounts) for fate in FATES}
    if row.conversation is None:
        characters["rejected"] = characters["in"]
    line: dict[str, Any] = {"file": row.origin.file, "row": row.origin.row, "line": row.origin.line}
    if not kept:
        reasons = dict.fromkeys(piece.dropped for piece in row.pieces if piece.dropped is not None)
        line["rejected"] = "cannot be used" if row.error is not None else ", ".join(reasons)
        if row.error is not None:
            line["why"] = row.error.what
    line["characters"] = characters
    line["cut_by"] = _cut_by(row, encoder, fates) if kept and characters["cut"] else {}
    line["messages"] = [
        {"role": message.role, "characters": len(message.content), **account}
        for message, account in zip(messages, accounts)
    ]
    line["examples"] = examples
    return line


def entries(piece: Piece, source: Conversation, encoder: Encoder) -> list[Spelled]:
    """What each token of the piece spells."""
    assert piece.layout is not None
    whole = spelled(piece.layout, encoder.tokenizer, source, piece.numbers)
    found = whole if piece.ranges is None else [one for start, end in piece.ranges for one in whole[start:end]]
    assert [one.token for one in found] == piece.tokens.tolist(), "the ledger explains the ids that are trained"
    return found


def _example(piece: Piece, found: list[Spelled], fates: list[np.ndarray]) -> dict[str, Any]:
    """An example's line; `fates` learn what became of the characters it shows."""
    trained: list[list[Any]] = []
    for position, (one, weight) in enumerate(zip(found, piece.weights.tolist())):
        fate = _TRAINED if weight > 0 else _CONTEXT
        for message, start, end in one.ranges:
            np.maximum(fates[message][start:end], fate, out=fates[message][start:end])
        if weight > 0:
            ranges = one.ranges or ((one.message, None, None),)
            trained += [[position, one.token, weight, message, start, end, one.part] for message, start, end in ranges]
    return {"tokens": len(piece.tokens), "cut": piece.cut, "trained": trained}


def _account(fates: np.ndarray, kept: bool) -> dict[str, int]:
    counts = np.bincount(fates, minlength=3)
    cut = int(counts[_CUT])
    both = {"trained": int(counts[_TRAINED]), "context": int(counts[_CONTEXT])}
    return {**both, "cut": cut if kept else 0, "rejected": 0 if kept else cut}


def _cut_by(row: Walked, encoder: Encoder, fates: list[np.ndarray]) -> dict[str, int]:
    """Of the characters that no token spells, how many the template left out before anything was cut."""
    assert row.conversation is not None
    cut = sum(int(np.count_nonzero(fate == _CUT)) for fate in fates)
    if not any(piece.cut or piece.dropped for piece in row.pieces):
        return {"template": cut}
    shown = [np.zeros(len(fate), bool) for fate in fates]
    for layout, _, _ in encode_conversation(row.conversation, encoder.template, encoder.tokenizer, encoder.loss):
        for one in spelled(layout, encoder.tokenizer, row.conversation):
            for message, start, end in one.ranges:
                shown[message][start:end] = True
    by_length = sum(int(np.count_nonzero((fate == _CUT) & was)) for fate, was in zip(fates, shown))
    return {name: count for name, count in (("max_length", by_length), ("template", cut - by_length)) if count}
