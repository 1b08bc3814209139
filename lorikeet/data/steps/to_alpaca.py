"""Rows as Alpaca has them: instruction, input and output. A conversation gives a row for each question, or one row.

FastChat's fork writes a row for each question without what was said before it, so "and in French?" asks about nothing;
here that is `history: none`, and by default the earlier turns ride along in `history`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from lorikeet.data.steps._contract import Log, Step, split
from lorikeet.data.steps._exchanges import exchanges
from lorikeet.data.steps._record import Record, Turn

_COLUMNS = ("instruction", "input", "output", "system", "history")


class ToAlpaca(Step):
    """Write rows with instruction, input and output."""

    kind: Literal["to_alpaca"] = "to_alpaca"
    history: Literal["column", "none"] = Field(
        "column",
        description="Earlier turns: in the column history of one row for the conversation; none: each question is a "
        "row of its own, which has not heard what was said before.",
    )

    def each(self, record: Record, log: Log) -> Iterable[Record]:
        if record.layout == "alpaca" and self.history == "column":
            return [record]
        system, found = exchanges(record.turns)
        if not found or any([turn.role for turn in one] != ["user", "assistant"] or one[1].calls for one in found):
            log.drop(record, "no questions with one answer each", " ".join(turn.speaker for turn in record.turns)[:200])
            return []
        if len(system) > 1:
            log.drop(record, "several system prompts")
            return []
        if not all(map(_is_learned_as_usual, record.turns)):
            log.drop(record, "a turn says how it is learned, which columns cannot")
            return []
        if record.layout != "alpaca" and (other := record.make_room(*_COLUMNS)):
            log.cut(record, other, "another column of a name that Alpaca's have")
        record.layout = "alpaca"
        log.change(record, "to Alpaca's columns")
        if self.history == "column" or len(found) == 1:
            return [record]
        return split(record, [[Turn(one.speaker, one.content) for one in system] + pair for pair in found], log)


def _is_learned_as_usual(turn: Turn) -> bool:
    usual = turn.role == "assistant"
    return all(turn.rest.get(key) in (None, usual) for key in ("trained", "train", "weight"))
