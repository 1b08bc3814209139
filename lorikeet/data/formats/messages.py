"""Rows as OpenAI's API writes them: `messages` with role and content, in any order, with tools and tool calls.

A message may say how it is learned: `trained` or `train` (true or false) and `weight` (its loss weight; OpenAI's 0 and
1, or anything between and above). They overrule the loss policy. OpenAI's older `functions` and `function_call` are
read as tools and calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.formats import _row, _tools
from lorikeet.data.formats._contract import Format

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    "user": "user",
    "assistant": "assistant",
    **dict.fromkeys(("tool", "function"), "tool"),
}
KEYS = ("role", "content", "tool_calls", "function_call", "name", "tool_call_id")


class Messages(Format):
    """A list of messages; optional `tools` (or `functions`) beside it."""

    kind: Literal["messages"] = Field("messages", description="Rows with a list of role/content messages.")
    messages: str = Field("messages", description="The column that holds the list of messages.")
    tools: str = Field("tools", description="The column of the tools: a list, or the same as JSON text.")
    expects: ClassVar[str] = (
        'messages: [{"role": "user", "content": "..."}, {"role": "assistant", ...}], optional: tools'
    )
    precedence: ClassVar[int] = 4

    def recognises(self, row: dict[str, Any]) -> bool:
        return isinstance(row.get(self.messages), list)

    def settle(self, rows: Sequence[dict[str, Any]], file: str) -> Format:
        _row.say_unread(rows, self.messages, KEYS, file)
        return self

    def read(self, row: dict[str, Any], origin: Origin, *, reply: bool = True) -> Conversation:
        messages = self.turns(_row.turn_list(row, self.messages, origin, self.expects), "message", origin)
        column = "functions" if row.get("functions") and not row.get(self.tools) else self.tools
        tools = _tools.tools(row.get(column), f"column '{column}'", origin)
        return _row.conversation(messages, origin, reply=reply, tools=tools)

    def turns(self, turns: Sequence[dict[str, Any]], where: str, origin: Origin) -> list[Message]:
        """The messages of a list of {role, content}; `where` is what one of them is called in errors."""
        messages = [_message(turn, f"{where} {number}", origin) for number, turn in enumerate(turns)]
        _calls_are_known(messages, where, origin)
        return messages


def _message(turn: dict[str, Any], where: str, origin: Origin) -> Message:
    if "role" not in turn and "from" in turn:
        raise DataError(
            f"{origin}: {where} is a from/value turn, as ShareGPT has them",
            given=f"columns {' '.join(turn)}",
            allowed="role and content",
            try_="data.format='{kind: sharegpt, messages: COLUMN}' with the column's name",
        )
    if "role" not in turn:
        _row.wrong_columns(turn, "role", origin, f"{where} with role and content", ("content",))
    role = _row.role(turn["role"], ROLES, where, origin)
    calls = _tools.calls(turn.get("tool_calls") or turn.get("function_call"), f"{where} tool_calls", origin)
    if calls and role != "assistant":
        raise DataError(
            f"{origin}: {where} ({role}) calls a tool, which only the assistant can",
            given=calls[0]["function"]["name"],
            allowed="tool_calls in messages of the role assistant",
        )
    if "content" not in turn and not calls:
        _row.wrong_columns(turn, "content", origin, f"{where} with role and content", ("role",))
    content = _row.checked(
        _joined(turn.get("content"), where, origin), where, origin, empty=bool(calls) or role != "assistant"
    )
    return Message(
        role,
        content,
        *_row.training(turn, where, origin),
        tool_calls=calls,
        name=_optional(turn, "name", where, origin),
        tool_call_id=_optional(turn, "tool_call_id", where, origin),
    )


def _optional(turn: dict[str, Any], key: str, where: str, origin: Origin) -> str | None:
    value = turn.get(key)
    return None if value is None else _row.checked(value, f"{where} {key}", origin)


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


def _calls_are_known(messages: Sequence[Message], where: str, origin: Origin) -> None:
    """A tool's answer to a call that nobody made teaches the model to trust answers to nothing."""
    known: list[str] = []
    for number, message in enumerate(messages):
        if message.tool_call_id is not None and message.tool_call_id not in known:
            raise DataError(
                f"{origin}: {where} {number} answers a call that is not there",
                given=f"tool_call_id {message.tool_call_id!r}",
                allowed=" ".join(known) or "the id of a tool call before it; there is none",
                try_="data.bad_rows=skip leaves such rows out and counts them",
            )
        known += [str(call["id"]) for call in message.tool_calls if "id" in call]
