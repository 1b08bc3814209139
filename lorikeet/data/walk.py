"""Every row of a recipe's sources, one after the other, with what became of it: read, rendered, encoded, cut.

It is the road that preparing takes, but nothing is stored, a row that cannot be used does not end it, and each row
still has its own columns. The ledger and the checks walk it; what one row took is let go before the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal

from lorikeet.base.errors import DataError, LorikeetError
from lorikeet.base.nouns import Conversation, Origin
from lorikeet.data.formats._contract import Format
from lorikeet.data.pipeline import DataOptions
from lorikeet.data.sources import Opened, open_all, validation_of
from lorikeet.data.truncate import Encoder, Piece

Side = Literal["train", "validation"]
_FIRST_ROWS = 8  # that a format is detected from, as preparing does


@dataclass(frozen=True, slots=True)
class Walked:
    """A row and what became of it. Without an encoder nothing is rendered, and `pieces` is empty."""

    origin: Origin
    side: Side  # which sources it is of; a split of the training sources is no source
    raw: dict[str, Any] | None  # None: the file cannot be read on from here
    conversation: Conversation | None
    pieces: Sequence[Piece] = ()
    error: LorikeetError | None = None  # why nothing of it can be used

    def characters(self) -> int:
        """Of its messages; of all texts in its columns where it could not be read."""
        if self.conversation is None:
            return _texts(self.raw)
        return sum(len(message.content) for message in self.conversation.messages)


def _texts(value: object) -> int:
    if isinstance(value, dict):
        return sum(map(_texts, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_texts, value))
    return len(value) if isinstance(value, str) else 0


def sides_of(options: DataOptions) -> list[tuple[Side, list[Opened]]]:
    """The sources that train and those that validate, opened. A fraction or a number is no source of its own."""
    wanted = validation_of(options)
    sides: list[tuple[Side, list[Opened]]] = [("train", open_all(options.train))]
    if isinstance(wanted, list):
        sides.append(("validation", open_all(wanted)))
    return sides


def walk(options: DataOptions, encoder: Encoder | None, *, go_on: bool = False) -> Iterator[Walked]:
    """The rows of all sources. `go_on`: a file that is broken somewhere is one `Walked` more (its origin has the
    number of rows that could be read) and the next file comes; otherwise its error is raised."""
    for side, sources in sides_of(options):
        left = options.max_examples if side == "train" else None
        for one in sources:
            limits = [most for most in (left, one.options.max_examples) if most is not None]
            format = one.options.format or options.format
            rows = chain.from_iterable(_rows(file, format, side, go_on) for file in one.files)
            for row in islice(rows, min(limits, default=None)):
                left = None if left is None else left - 1
                yield row if encoder is None else _encoded(row, encoder)


def _rows(file: str, format: Format, side: Side, go_on: bool) -> Iterator[Walked]:
    rows = format.rows(file)
    reached = 0
    try:
        first = list(islice(rows, _FIRST_ROWS))
        settled = format.settle([row for row, _ in first], file)
        for row, origin in chain(first, rows):
            reached = origin.row + 1
            yield _read(row, origin, settled, side)
    except DataError as error:
        if not go_on:
            raise
        yield Walked(Origin(file, reached), side, None, None, error=error)


def _read(row: dict[str, Any], origin: Origin, format: Format, side: Side) -> Walked:
    try:
        return Walked(origin, side, row, format.read(row, origin))
    except DataError as error:
        return Walked(origin, side, row, None, error=error)


def _encoded(row: Walked, encoder: Encoder) -> Walked:
    if row.conversation is None:
        return row
    pieces, error = encoder.usable(row.conversation)
    return Walked(row.origin, row.side, row.raw, row.conversation, pieces, error)
