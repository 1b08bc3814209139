"""One side of a pair: a text, one turn, or a list of turns; what it says as messages."""

from __future__ import annotations

from lorikeet.base.nouns import Message, Origin
from lorikeet.data.formats import _row
from lorikeet.data.formats._contract import Format
from lorikeet.data.formats.messages import Messages
from lorikeet.data.formats.sharegpt import ShareGPT


def said(value: object, role: str, column: str, origin: Origin, reader: Format | None = None) -> list[Message]:
    """The messages in `value`, from the column `column`; a plain text is one message of `role`.

    Turns are read by `reader` where it reads turns, else by the keys they have: from and value, or role and content.
    """
    if not isinstance(value, (list, tuple, dict)):
        return [Message(role, _row.checked(value, f"column '{column}'", origin))]
    listed = [value] if isinstance(value, dict) else value
    turns = _row.turn_list({column: listed}, column, origin, 'text, or [{"role": "...", "content": "..."}, ...]')
    if not isinstance(reader, (Messages, ShareGPT)):
        reader = ShareGPT() if "from" in turns[0] else Messages()
    return reader.turns(turns, f"{column}: turn", origin)


def is_turns(value: object) -> bool:
    """Whether `value` is a list of turns rather than a text."""
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)
