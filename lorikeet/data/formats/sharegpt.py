"""ShareGPT rows: a `conversations` list of {from, value} (or {role, content}) turns, user and assistant in turn.

Tools as LLaMA-Factory has them: a `tools` column, turns of `function_call` whose text is the call in JSON, and turns of
`observation` with what the tool answered. Its `columns` and `tags` are the options of the same names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.formats import _row, _tools
from lorikeet.data.formats._contract import Format

CALL = "function_call"
KEYS = ("from", "value", "role", "content")
ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard"), "assistant"),
    "system": "system",
    **dict.fromkeys(("observation", "tool", "function_response", "tool_response"), "tool"),
    **dict.fromkeys((CALL, "tool_call"), CALL),
}
_THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)


class ShareGPT(Format):
    """A list of turns with a speaker and a text; optional `system` and `tools` columns."""

    kind: Literal["sharegpt"] = Field("sharegpt", description="Rows with a list of from/value turns.")
    messages: str = Field("conversations", description="The column that holds the list of turns.")
    system: str = Field("system", description="The column of the system prompt, where there is one.")
    tools: str = Field("tools", description="The column of the tools: a list, or the same as JSON text.")
    role_tag: str | None = Field(None, description="A turn's key for who speaks; null: from, or role.")
    content_tag: str | None = Field(None, description="A turn's key for what is said; null: value, or content.")
    user_tag: str | None = Field(None, description="What the user is called, besides human and user.")
    assistant_tag: str | None = Field(None, description="What the model is called, besides gpt and assistant.")
    function_tag: str | None = Field(None, description="Who speaks in a tool call, besides function_call.")
    observation_tag: str | None = Field(None, description="Who speaks in a tool's answer, besides observation.")
    system_tag: str | None = Field(None, description="Who speaks in a system prompt, besides system.")
    expects: ClassVar[str] = (
        'conversations: [{"from": "human", "value": "..."}, {"from": "gpt", ...}], optional: system tools'
    )
    precedence: ClassVar[int] = 3

    def recognises(self, row: dict[str, Any]) -> bool:
        return isinstance(row.get(self.messages), list)

    def settle(self, rows: Sequence[dict[str, Any]], file: str) -> Format:
        _row.say_unread(rows, self.messages, (*KEYS, self.role_tag, self.content_tag), file)
        return self

    def read(self, row: dict[str, Any], origin: Origin, *, reply: bool = True) -> Conversation:
        _row.refuse_preferences(row, origin)
        messages = self.turns(_row.turn_list(row, self.messages, origin, self.expects), "turn", origin)
        if system := _row.text(row, self.system, origin, empty=True):
            # the same prompt in the column and as the first turn is one prompt; two different ones are refused below
            repeated = bool(messages) and (messages[0].role, messages[0].content) == ("system", system)
            messages = [Message("system", system), *messages[repeated:]]
        _in_turn(messages, origin)
        tools = _tools.tools(row.get(self.tools), f"column '{self.tools}'", origin)
        return _row.conversation(messages, origin, reply=reply, tools=tools)

    def turns(self, turns: Sequence[dict[str, Any]], where: str, origin: Origin) -> list[Message]:
        """The messages of a list of {from, value}; `where` is what one of them is called in errors."""
        tags = {
            self.user_tag: "user",
            self.assistant_tag: "assistant",
            self.function_tag: CALL,
            self.observation_tag: "tool",
            self.system_tag: "system",
        }
        roles = ROLES | {tag.lower(): role for tag, role in tags.items() if tag is not None}
        found = [self._message(turn, roles, f"{where} {number}", origin) for number, turn in enumerate(turns)]
        return [message for message in found if message.content or message.tool_calls or message.role == "tool"]

    def _message(self, turn: dict[str, Any], roles: dict[str, str], where: str, origin: Origin) -> Message:
        usual = ("from", "value") if "from" in turn or "value" in turn else ("role", "content")
        speaker, words = self.role_tag or usual[0], self.content_tag or usual[1]
        for key in (speaker, words):
            if key not in turn:
                _row.wrong_columns(turn, key, origin, f"{where} with {speaker} and {words}")
        if turn.get("tool_calls"):
            raise DataError(
                f"{origin}: {where} has tool_calls, as OpenAI's messages have them",
                given=f"columns {' '.join(turn)}",
                allowed=f"turns of {CALL} with the call as text",
                try_=f"data.format='{{kind: messages, messages: {self.messages}}}'",
            )
        role = _row.role(turn[speaker], roles, where, origin)
        training = _row.training(turn, where, origin)
        if role == CALL:
            thought, calls = _call(turn[words], f"{where} ({CALL})", origin)
            return Message("assistant", thought, *training, tool_calls=calls)
        # a system prompt may be empty, and so may what a tool answers
        content = _row.checked(turn[words], f"{where} ({role})", origin, empty=role in ("system", "tool"))
        return Message(role, content, *training)


def _call(value: object, where: str, origin: Origin) -> tuple[str, tuple[dict[str, Any], ...]]:
    """(the thought in front, the calls) of a turn whose text is one call or a list of calls in JSON."""
    thought = ""
    if isinstance(value, str):
        _row.checked(value, where, origin)
        if match := _THOUGHT.match(value):
            thought, value = match.group().strip(), value[match.end() :]
    calls = _tools.calls(value, where, origin)
    if not calls:
        raise DataError(f"{origin}: {where} calls nothing", given=repr(value)[:120], allowed=_tools.CALL)
    return thought, calls


def is_thought(text: str) -> bool:
    """Whether `text` may stand in front of a call: a thought, or nothing."""
    match = _THOUGHT.match(text)
    return match.end() == len(text) if match else not text.strip()


def _in_turn(messages: list[Message], origin: Origin) -> None:
    """ShareGPT scrapes with a lost turn look like this; training on them would teach answers to nothing."""
    spoken = [message.role for message in messages if message.role != "system"]
    fault = None
    if spoken and spoken[0] != "user":
        fault = f"the first turn is the {spoken[0]}'s"
    elif any(left == right != "tool" for left, right in pairwise(spoken)):
        fault = "one speaker has two turns in a row"
    elif any(message.role == "system" for message in messages[1:]):
        fault = "a system turn stands behind the start"
    if fault:
        raise DataError(
            f"{origin}: {fault}",
            given=" ".join(message.role for message in messages)[:200],
            allowed="(system) user assistant user assistant ...",
            try_="data.bad_rows=skip leaves such rows out; format messages allows any order",
        )
