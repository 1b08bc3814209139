"""The format found by looking at a file's first rows; what was found is said, never guessed in silence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import Field

from lorikeet.base.errors import DataError
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.base.log import note
from lorikeet.base.nouns import Conversation, Origin
from lorikeet.data.formats._contract import Format

PACKAGE = "lorikeet.data.formats"


class Auto(Format):
    """Asks every other format whether it recognises the first rows."""

    kind: Literal["auto"] = Field("auto", description="Found from the first rows, and said.")

    def recognises(self, row: dict[str, Any]) -> bool:
        return False  # it is never the answer to its own question

    def settle(self, rows: Sequence[dict[str, Any]], file: str) -> Format:
        """The most specific format that recognises the first rows; it is printed. Raises DataError for none."""
        found = detect(rows)
        if not found:
            raise _unknown(rows, file)
        settled = found[-1].settle(rows, file)
        note(f"{file}: format {settled.model_dump()['kind']}{_unread(settled, rows)}")
        return settled

    def read(self, row: dict[str, Any], origin: Origin, *, reply: bool = True) -> Conversation:
        return self.settle([row], str(origin)).read(row, origin, reply=reply)


def detect(rows: Sequence[dict[str, Any]]) -> list[Format]:
    """The formats that recognise any of `rows`, the best last: of most rows, and of those the most specific."""
    return sorted(
        (format_ for format_ in _candidates() if any(format_.recognises(row) for row in rows)),
        key=lambda format_: (sum(format_.recognises(row) for row in rows), format_.precedence),
    )


def _candidates() -> list[Format]:
    return [kind_class(PACKAGE, Format, name)() for name in kinds(PACKAGE) if name != "auto"]


def _unread(found: Format, rows: Sequence[dict[str, Any]]) -> str:
    """Which columns the format has no option for, in words: what is left out is said too."""
    named = {*_texts(found.model_dump()), *found.columns}
    columns = [str(column) for column in rows[0] if column not in named] if rows else []
    return f" (not read: {' '.join(columns[:12])}{' ...' if len(columns) > 12 else ''})" if columns else ""


def _texts(options: dict[str, Any]) -> Iterator[str]:
    for value in options.values():
        if isinstance(value, dict):
            yield from _texts(value)
        elif isinstance(value, str):
            yield value


def _unknown(rows: Sequence[dict[str, Any]], file: str) -> DataError:
    columns = list(rows[0]) if rows else []
    known = ("instruction", "output", "conversations", "messages", "prompt", "response", "question", "answer", "text")
    near = [  # slips of the pen; `antwort` is none of `answer`
        (column, close[0])
        for column in map(str, columns)
        if (close := get_close_matches(column, known, n=1, cutoff=0.75)) and close[0] != column
    ]
    first, second = columns if len(columns) == 2 else ("NAME", "NAME")
    return DataError(
        f"{file}: no format recognises these columns",
        given=f"columns {' '.join(map(str, columns)) or '(none)'}",
        allowed="; ".join(f"{format_.model_dump()['kind']}: {format_.expects}" for format_ in _candidates()),
        try_=f"rename the column '{near[0][0]}' to '{near[0][1]}'"
        if near
        else f"data.format='{{kind: columns, prompt: {first}, response: {second}}}'",
    )
