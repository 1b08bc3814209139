"""Rows as ShareGPT has them: `conversations` of from and value."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal

from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import CALL, Record


class ToSharegpt(Step):
    """Write rows as lists of from/value turns."""

    kind: Literal["to_sharegpt"] = "to_sharegpt"

    def each(self, record: Record, log: Log) -> Iterable[Record]:
        if record.layout == "sharegpt" and record.column == "conversations":
            return [record]
        record.to_layout("sharegpt")
        for turn in record.turns:
            if calls := turn.rest.pop("tool_calls", None):
                said = [call.get("function", call) for call in calls]
                turn.content = (turn.content and turn.content + "\n") + json.dumps(said, ensure_ascii=False)
                turn.speaker = CALL
        log.change(record, "to ShareGPT's turns")
        return [record]
