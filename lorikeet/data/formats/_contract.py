"""What every data format does: one row of a file to a Conversation, or a clear error."""

from __future__ import annotations

from typing import Any, ClassVar

from lorikeet.base.nouns import Conversation, Origin
from lorikeet.base.options import Options


class Format(Options):
    """Base of the format kinds; fields are `data.format`'s options."""

    expects: ClassVar[str] = ""  # one line for error messages: the columns a row needs

    def recognises(self, row: dict[str, Any]) -> bool:
        """Whether a row has this format's columns; used when `data.format` is auto."""
        raise NotImplementedError

    def read(self, row: dict[str, Any], origin: Origin) -> Conversation:
        """The row's conversation. Raises DataError that names origin and column."""
        raise NotImplementedError
