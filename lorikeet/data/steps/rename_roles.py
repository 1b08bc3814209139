"""Other names for who speaks: files call the assistant `bot`, `model` or a person's name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import Record


class RenameRoles(Step):
    """The speakers named in `names` get the names it gives them."""

    kind: Literal["rename_roles"] = "rename_roles"
    names: dict[str, str] = Field(
        min_length=1, description="From the file's name to the new one.", examples=[{"bot": "gpt"}]
    )

    def each(self, record: Record, log: Log) -> Iterable[Record]:
        for turn in record.turns:
            new = self.names.get(turn.speaker)
            if new is not None and new != turn.speaker:
                log.change(record, f"{turn.speaker} to {new}")
                turn.speaker = new
        return [record]
