"""Commonsense Dialogues: a situation, who speaks, and the turns, which two people say in turn.

The first to speak is the user, the second the model; a last turn of the user's has no answer and is left out. Spaces
before punctuation, which the data has, are taken out (`tidy`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.files import Advance
from lorikeet.data.formats import _row
from lorikeet.data.formats._contract import Format
from lorikeet.data.formats.dolly import refuse

_LOOSE = re.compile(r"(?<!\s)\s+([.,!?;:'])")  # from the first space of a run, or a long run is looked at n² times


class Dialogue(Format):
    """`context`, `turns`, and `speaker`."""

    kind: Literal["dialogue"] = Field("dialogue", description="Commonsense Dialogues: a situation and its turns.")
    tidy: bool = Field(True, description="Take out spaces before punctuation.")
    min_turns: int = Field(2, ge=2, description="A row with fewer turns cannot be used.")
    expects: ClassVar[str] = "turns (a list of texts), optional: context speaker"
    columns: ClassVar[tuple[str, ...]] = ("context", "speaker", "turns")
    precedence: ClassVar[int] = 1

    def recognises(self, row: dict[str, Any]) -> bool:
        turns = row.get("turns")
        return isinstance(turns, list) and bool(turns) and all(isinstance(turn, str) for turn in turns)

    def rows(self, file: str, advance: Advance | None = None) -> Iterator[tuple[dict[str, Any], Origin]]:
        """The original file is one object with a row under each number."""
        number = 0
        for row, origin in super().rows(file, advance):
            many = "turns" not in row and row and all(isinstance(one, dict) for one in row.values())
            for one in row.values() if many else [row]:
                yield one, Origin(origin.file, number, origin.line)
                number += 1

    def read(self, row: dict[str, Any], origin: Origin, *, reply: bool = True) -> Conversation:
        if "turns" not in row:
            _row.wrong_columns(row, "turns", origin, self.expects)
        turns = row["turns"]
        if not isinstance(turns, list):
            raise DataError(f"{origin}: column 'turns' is no list", given=repr(turns)[:80], allowed=self.expects)
        said = [self._tidied(_row.checked(turn, f"turn {at}", origin)) for at, turn in enumerate(turns)]
        if reply:
            said = said[: len(said) // 2 * 2]
        if len(said) < (self.min_turns if reply else 1):
            refuse(origin, "too few turns", len(turns), f"at least {self.min_turns}")
        context = _row.text(row, "context", origin, empty=True)
        messages = [Message("system", self._tidied(context))] if context else []
        messages += [Message(("user", "assistant")[at % 2], text) for at, text in enumerate(said)]
        return _row.conversation(messages, origin, reply=reply)

    def _tidied(self, text: str) -> str:
        return _LOOSE.sub(r"\1", text) if self.tidy else text
