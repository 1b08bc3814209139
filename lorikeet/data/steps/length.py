"""Too short or too long to learn from, in characters and turns. In tokens it is `split_turns` that knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import Record


class Length(Step):
    """Conversations within limits."""

    kind: Literal["length"] = "length"
    min_characters: int | None = Field(None, ge=1, description="Of all turns together; FastChat's is 16.")
    max_characters: int | None = Field(None, ge=1, description="Of all turns together.")
    min_reply: int | None = Field(None, ge=1, description="Characters of the longest reply.")
    min_turns: int | None = Field(None, ge=1, description="Turns, the system prompt aside.")
    max_turns: int | None = Field(None, ge=1, description="Turns, the system prompt aside.")

    @model_validator(mode="after")
    def _possible(self) -> Length:
        limits = (self.min_characters, self.max_characters, self.min_reply, self.min_turns, self.max_turns)
        if all(limit is None for limit in limits):
            raise ValueError("needs at least one limit")
        for least, most in ((limits[0], limits[1]), (limits[2], limits[1]), (limits[3], limits[4])):
            if least is not None and most is not None and least > most:
                raise ValueError(f"no conversation has at least {least} and at most {most}")
        return self

    def each(self, record: Record, log: Log) -> Iterable[Record]:
        characters = sum(len(turn.text) for turn in record.turns)
        reply = max((len(turn.text) for turn in record.turns if turn.role == "assistant"), default=0)
        turns = sum(turn.role != "system" for turn in record.turns)
        for reason, size, unit, least, most in (
            ("characters", characters, "characters", self.min_characters, self.max_characters),
            ("reply", reply, "characters in the longest reply", self.min_reply, None),
            ("turns", turns, "turns", self.min_turns, self.max_turns),
        ):
            short, long = least is not None and size < least, most is not None and size > most
            if short or long:
                log.drop(record, f"too {'few' if short else 'many'} {reason}", f"{size} {unit}")
                return []
        return [record]
