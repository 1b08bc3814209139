"""Rows as ShareGPT has them: `conversations` of from and value."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal

from lorikeet.data.formats import _tools
from lorikeet.data.formats import sharegpt as sharegpt_format
from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import CALL, CALLS, Record


class ToSharegpt(Step):
    """Write rows as lists of from/value turns."""

    kind: Literal["to_sharegpt"] = "to_sharegpt"

    def each(self, record: Record, log: Log) -> Iterable[Record]:
        if (record.layout, record.column, record.keys) == ("sharegpt", "conversations", ("from", "value")):
            return [record]
        if any(turn.role == "text" for turn in record.turns):
            log.drop(record, "a text, which nobody says")
            return []
        called = [_called(record, number) for number in range(len(record.turns))]
        if any(calls and not sharegpt_format.is_thought(turn.content) for turn, calls in zip(record.turns, called)):
            log.drop(record, "a turn speaks and calls a tool, which ShareGPT's cannot")
            return []
        if other := record.make_room("conversations", "system"):
            log.cut(record, other, "another column of a name that ShareGPT's have")
        record.to_layout("sharegpt")
        for turn, calls in zip(record.turns, called):
            if calls:
                for key in CALLS:
                    turn.rest.pop(key, None)
                turn.content = (turn.content and turn.content + "\n") + json.dumps(calls, ensure_ascii=False)
                turn.speaker = CALL
        log.change(record, "to ShareGPT's turns")
        return [record]


def _called(record: Record, number: int) -> list[object]:
    """The functions that a turn calls in a key of its own. Raises DataError for calls that are none."""
    rest = record.turns[number].rest
    given = next((rest[key] for key in CALLS if rest.get(key)), None)
    return [call["function"] for call in _tools.calls(given, f"turn {number} tool_calls", record.origin)]
