"""Rows that are documents: plain text, all of it learned, without any template.

A document longer than data.max_length is cut into windows, each a slice of the document's ids. A window begins with
the last `stride` tokens of the one before, as context that is not learned again, so every token is learned exactly
once (data/truncate.py). Where the model has a BOS each window begins with it; EOS stands at the document's end alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.base.log import note
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.documents import SampleBy
from lorikeet.data.files import Advance, read_rows
from lorikeet.data.formats import _row
from lorikeet.data.formats._contract import Format


class Text(Format):
    """One document a row."""

    kind: Literal["text"] = Field("text", description="Rows with a document in one column, or a text file.")
    text: str = Field("text", description="The column that holds the document; a text file has only this one.")
    stride: int | None = Field(
        None, ge=1, description="Tokens of the window before that a window repeats as context; null: max_length / 8."
    )
    sample_by: SampleBy | None = Field(
        None, description="What a document is in a text file; null: a line of .txt, the whole of .md."
    )
    expects: ClassVar[str] = "text"

    def recognises(self, row: dict[str, Any]) -> bool:
        return isinstance(row.get(self.text), str)

    def rows(self, file: str, advance: Advance | None = None) -> Iterator[tuple[dict[str, Any], Origin]]:
        return read_rows(file, advance, self.sample_by)

    def settle(self, rows: Sequence[dict[str, Any]], file: str) -> Format:
        if self.sample_by is None and file.removesuffix(".gz").endswith(".txt"):
            note(f"{file}: each line is a document; data.format='{{kind: text, sample_by: document}}' takes it whole")
        return self

    def read(self, row: dict[str, Any], origin: Origin, *, reply: bool = True) -> Conversation:
        if self.text not in row:
            _row.wrong_columns(row, self.text, origin, self.text)
        document = Message("text", _row.text(row, self.text, origin))
        return Conversation((document,), origin=origin, stride=self.stride)
