"""Rows as OpenAI's API writes them: `messages` with role and content, in any order, with tools and tool calls.

A message may carry `trained` (true or false) and `weight` (its loss weight): they overrule the loss policy.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import orjson
from pydantic import Field

from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.formats import _row
from lorikeet.data.formats._contract import Format

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


class Messages(Format):
    """A list of messages; optional `tools` beside it."""

    kind: Literal["messages"] = Field("messages", description="Rows with a list of role/content messages.")
    column: str = Field("messages", description="The column that holds the list of messages.")
    expects: ClassVar[str] = (
        'messages: [{"role": "user", "content": "..."}, {"role": "assistant", ...}], optional: tools'
    )
    precedence: ClassVar[int] = 4

    def recognises(self, row: dict[str, Any]) -> bool:
        return isinstance(row.get(self.column), list)

    def read(self, row: dict[str, Any], origin: Origin, *, reply: bool = True) -> Conversation:
        turns = _row.turn_list(row, self.column, origin, self.expects)
        messages = [_message(turn, f"message {number}", origin) for number, turn in enumerate(turns)]
        tools = _objects(row.get("tools"), "column 'tools'", origin)
        return _row.conversation(messages, origin, reply=reply, tools=tools)


def _message(turn: dict[str, Any], where: str, origin: Origin) -> Message:
    if "role" not in turn:
        _row.wrong_columns(turn, "role", origin, f"{where} with role and content", ("content",))
    role = _row.role(turn["role"], ROLES, where, origin)
    calls = _objects(turn.get("tool_calls"), f"{where} tool_calls", origin)
    if "content" not in turn and not calls:
        _row.wrong_columns(turn, "content", origin, f"{where} with role and content", ("role",))
    trained, weight = turn.get("trained"), turn.get("weight")
    if trained is not None and not isinstance(trained, bool):
        raise DataError(
            f"{origin}: {where} has a 'trained' that is not a boolean", given=repr(trained), allowed="true false"
        )
    if weight is not None and (
        isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < 1e6
    ):
        raise DataError(
            f"{origin}: {where} has a 'weight' that is no loss weight", given=repr(weight), allowed="0 or more"
        )
    return Message(
        role,
        _row.checked(
            _joined(turn.get("content"), where, origin), where, origin, empty=bool(calls) or role != "assistant"
        ),
        trained=trained,
        weight=None if weight is None else float(weight),
        tool_calls=calls,
    )


def _joined(content: object, where: str, origin: Origin) -> object:
    """The text of a content that is a list of text parts; any other content as it is."""
    if not isinstance(content, (list, tuple)):
        return content
    if not all(isinstance(part, dict) and part.get("type", "text") == "text" and "text" in part for part in content):
        raise DataError(
            f"{origin}: {where} has a part that is not text",
            given=repr(content)[:120],
            allowed='{"type": "text", "text": "..."}',
            try_="a copy of the file without images, audio and files",
        )
    return "".join(_row.checked(part["text"], where, origin, empty=True) for part in content)


def _objects(value: object, where: str, origin: Origin) -> tuple[dict[str, Any], ...]:
    """A list of objects, or the same as a JSON string (tables cannot hold nested columns of mixed types)."""
    given = value
    if isinstance(value, str):
        try:
            value = orjson.loads(value) if value.strip() else None
        except orjson.JSONDecodeError as error:
            raise DataError(f"{origin}: {where} is broken JSON", given=error, allowed="a list of objects") from error
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, dict) for item in value):
        raise DataError(
            f"{origin}: {where} is not a list of objects", given=repr(given)[:120], allowed='[{"type": ...}]'
        )
    return tuple(value)
