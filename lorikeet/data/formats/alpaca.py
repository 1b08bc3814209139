"""Alpaca rows: instruction, input, output, with optional system and history columns.

The question is the instruction, then a line end and the input where there is one.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.formats import _row
from lorikeet.data.formats._contract import Format


class Alpaca(Format):
    """`instruction`, optional `input`, `output`; optional `system`, `history` ([[question, answer], ...])."""

    kind: Literal["alpaca"] = Field("alpaca", description="Rows with instruction, input and output.")
    expects: ClassVar[str] = "instruction output, optional: input system history"
    precedence: ClassVar[int] = 2

    def recognises(self, row: dict[str, Any]) -> bool:
        return "instruction" in row and not {"response", "answer"} & row.keys()

    def read(self, row: dict[str, Any], origin: Origin, *, reply: bool = True) -> Conversation:
        for column in ("instruction", "output") if reply else ("instruction",):
            if column not in row:
                _row.wrong_columns(row, column, origin, self.expects, ("instruction", "input", "output"))
        messages = []
        if system := _row.text(row, "system", origin, empty=True):
            messages.append(Message("system", system))
        messages += _history(row.get("history"), origin)
        instruction = _row.text(row, "instruction", origin, empty=True)
        extra = _row.text(row, "input", origin, empty=True)
        question = _row.checked(
            f"{instruction}\n{extra}" if instruction and extra else instruction or extra, "column 'instruction'", origin
        )
        messages.append(Message("user", question))
        if reply or row.get("output"):
            messages.append(Message("assistant", _row.text(row, "output", origin)))
        return _row.conversation(messages, origin, reply=reply)


def _history(history: object, origin: Origin) -> list[Message]:
    if history is None or history == "":
        return []
    if not isinstance(history, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in history):
        raise DataError(
            f"{origin}: column 'history' must be a list of pairs",
            given=repr(history)[:120],
            allowed='[["question", "answer"], ...]',
        )
    return [
        Message(role, _row.checked(side, f"history {number}", origin))
        for number, pair in enumerate(history)
        for role, side in zip(("user", "assistant"), pair)
    ]
