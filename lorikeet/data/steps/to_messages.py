"""Rows as OpenAI's API has them: `messages` with role and content, calls to tools as `tool_calls`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from lorikeet.data.formats import _tools
from lorikeet.data.formats import sharegpt as sharegpt_format
from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import CALL, ROLES, Record


class ToMessages(Step):
    """Write rows as messages."""

    kind: Literal["to_messages"] = "to_messages"

    def each(self, record: Record, log: Log) -> Iterable[Record]:
        unknown = next((turn.speaker for turn in record.turns if turn.role in (None, "text")), None)
        if unknown is not None:
            log.drop(record, "unknown role", repr(unknown))
            return []
        if record.layout == "messages" and record.column == "messages":
            return [record]
        for number, turn in enumerate(record.turns):
            if ROLES.get(turn.speaker.lower()) == CALL:
                thought, calls = sharegpt_format._call(turn.content, f"turn {number}", record.origin)
                turn.content, turn.rest["tool_calls"], turn.speaker = thought, list(calls), "assistant"
        if record.rest.get("tools"):
            record.rest["tools"] = list(_tools.tools(record.rest["tools"], "column 'tools'", record.origin))
        if other := record.make_room("messages"):
            log.cut(record, other, "another column of the name 'messages'")
        record.to_layout("messages")
        log.change(record, "to messages")
        return [record]
