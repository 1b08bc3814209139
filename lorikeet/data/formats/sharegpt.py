"""ShareGPT rows: a `conversations` list of {from, value} (or {role, content}) turns, user and assistant in turn."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.formats import _row
from lorikeet.data.formats._contract import Format

ALIASES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation"), "tool"),
}


class ShareGPT(Format):
    """A list of turns with a speaker and a text; optional `system` column in front."""

    kind: Literal["sharegpt"] = Field("sharegpt", description="Rows with a list of from/value turns.")
    column: str = Field("conversations", description="The column that holds the list of turns.")
    expects: ClassVar[str] = (
        'conversations: [{"from": "human", "value": "..."}, {"from": "gpt", ...}], optional: system'
    )
    precedence: ClassVar[int] = 3

    def recognises(self, row: dict[str, Any]) -> bool:
        return isinstance(row.get(self.column), list)

    def read(self, row: dict[str, Any], origin: Origin, *, reply: bool = True) -> Conversation:
        _row.refuse_preferences(row, origin)
        messages = []
        if system := _row.text(row, "system", origin, empty=True):
            messages.append(Message("system", system))
        for number, turn in enumerate(_row.turn_list(row, self.column, origin, self.expects)):
            speaker, words = ("from", "value") if "from" in turn or "value" in turn else ("role", "content")
            for key in (speaker, words):
                if key not in turn:
                    _row.wrong_columns(turn, key, origin, f"turn {number} with {speaker} and {words}")
            role = _row.role(turn[speaker], ALIASES, f"turn {number}", origin)
            content = _row.checked(turn[words], f"turn {number} ({role})", origin, empty=role == "system")
            if content:
                messages.append(Message(role, content))
        _in_turn(messages, origin)
        return _row.conversation(messages, origin, reply=reply)


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
