"""Rows that are documents: one column of plain text, all of it learned, without any template."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.formats import _row
from lorikeet.data.formats._contract import Format


class Text(Format):
    """One document a row."""

    kind: Literal["text"] = Field("text", description="Rows with a document in one column.")
    text: str = Field("text", description="The column that holds the document.")
    expects: ClassVar[str] = "text"

    def recognises(self, row: dict[str, Any]) -> bool:
        return isinstance(row.get(self.text), str)

    def read(self, row: dict[str, Any], origin: Origin, *, reply: bool = True) -> Conversation:
        if self.text not in row:
            _row.wrong_columns(row, self.text, origin, self.text)
        return Conversation((Message("text", _row.text(row, self.text, origin)),), (), origin)
