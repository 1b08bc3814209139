"""What every data format does: one row of a file to a Conversation, or a clear error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from lorikeet.base.nouns import Conversation, Origin
from lorikeet.base.options import Options
from lorikeet.data.files import Advance, read_rows


class Format(Options):
    """Base of the format kinds; fields are `data.format`'s options."""

    expects: ClassVar[str] = ""  # one line for error messages: the columns a row needs
    columns: ClassVar[tuple[str, ...]] = ()  # that it knows besides those its options name
    precedence: ClassVar[int] = 0  # where several formats recognise a row, the highest reads it

    def recognises(self, row: dict[str, Any]) -> bool:
        """Whether a row has this format's columns; used when `data.format` is auto."""
        raise NotImplementedError

    def rows(self, file: str, advance: Advance | None = None) -> Iterator[tuple[dict[str, Any], Origin]]:
        """The rows of a file; kinds that cut files into rows in their own way override this."""
        return read_rows(file, advance)

    def settle(self, rows: Sequence[dict[str, Any]], file: str) -> Format:
        """The format to read `file` with, knowing its first rows; kinds that detect something override this."""
        return self

    def read(self, row: dict[str, Any], origin: Origin, *, reply: bool = True) -> Conversation:
        """The row's conversation. Raises DataError that names origin and column.

        `reply=False` (predict): the row may end with the question, without an answer."""
        raise NotImplementedError
