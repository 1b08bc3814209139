"""Dolly's rows (databricks-dolly-15k): instruction, context, response; the context stands behind the instruction.

`min_words` leaves out prompts too short to say anything, as QLoRA-LLM's builder does (it takes five words or more).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.formats import _row
from lorikeet.data.formats._contract import Format


class Dolly(Format):
    """`instruction`, `context`, `response`, and `category`."""

    kind: Literal["dolly"] = Field("dolly", description="Rows of Dolly: instruction, context and response.")
    min_words: int = Field(0, ge=0, description="A row whose instruction has fewer words cannot be used.")
    categories: tuple[str, ...] | None = Field(None, description="Rows of other categories cannot be used; null: all.")
    expects: ClassVar[str] = "instruction response, optional: context category"
    columns: ClassVar[tuple[str, ...]] = ("instruction", "context", "response", "category")
    precedence: ClassVar[int] = 3

    def recognises(self, row: dict[str, Any]) -> bool:
        return {"instruction", "context", "response"} <= row.keys()

    def read(self, row: dict[str, Any], origin: Origin, *, reply: bool = True) -> Conversation:
        for column in ("instruction", "response") if reply else ("instruction",):
            if column not in row:
                _row.wrong_columns(row, column, origin, self.expects)
        instruction = _row.text(row, "instruction", origin)
        context = _row.text(row, "context", origin, empty=True)
        words = len(instruction.split())
        if words < self.min_words:
            refuse(origin, "the instruction is too short", f"{words} words", f"at least {self.min_words}")
        if self.categories is not None and row.get("category") not in self.categories:
            refuse(origin, "another category", row.get("category"), " ".join(self.categories))
        question = f"{instruction}\n{context}" if context else instruction
        messages = [Message("user", question, context=context or None)]
        if reply or row.get("response"):
            messages.append(Message("assistant", _row.text(row, "response", origin)))
        return _row.conversation(messages, origin, reply=reply)


def refuse(origin: Origin, why: str, given: object, allowed: str) -> None:
    """Raise the error of a row that a filter leaves out."""
    raise DataError(
        f"{origin}: {why}", given=given, allowed=allowed, try_="data.bad_rows=skip leaves such rows out and counts them"
    )
