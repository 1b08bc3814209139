"""Phrases and patterns that no conversation should have: "as an AI language model", a company's name, a key's shape."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from lorikeet.base.errors import DataError
from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._exchanges import exchanges
from lorikeet.data.steps._record import Record, Turn


class Blocklist(Step):
    """Conversations, or exchanges of them, in which a phrase or pattern stands."""

    kind: Literal["blocklist"] = "blocklist"
    phrases: list[str] = Field([], description="Texts to look for.")
    patterns: list[str] = Field([], description="Regular expressions to look for.")
    file: Path | None = Field(None, description="A file with a phrase on each line.")
    ignore_case: bool = Field(True, description="Whether ChatGPT is chatgpt.")
    drop: Literal["conversation", "turn"] = Field(
        "conversation", description="The whole conversation, or the turn, with the rest of its exchange."
    )
    roles: list[Literal["system", "user", "assistant", "tool"]] = Field(
        [], description="Whose turns to look at; empty: everyone's."
    )

    @field_validator("patterns")
    @classmethod
    def _are_patterns(cls, value: list[str]) -> list[str]:
        for pattern in value:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"is no regular expression: {pattern!r}: {error}") from None
            if not pattern:
                raise ValueError("an empty pattern is in every text")
        return value

    @model_validator(mode="after")
    def _has_something(self) -> Blocklist:
        if not (self.phrases or self.patterns or self.file):
            raise ValueError("needs phrases, patterns or a file")
        if any(not phrase.strip() for phrase in self.phrases):
            raise ValueError("an empty phrase is in every text")
        return self

    def files(self) -> list[Path]:
        return [self.file] if self.file is not None else []

    def start(self) -> None:
        assert self._phrases or self._patterns

    @cached_property
    def _phrases(self) -> list[str]:
        """What to look for with `in`, which is many times faster than a pattern, of thousands of phrases above all."""
        listed = list(self.phrases)
        if self.file is not None:
            try:
                lines = self.file.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"blocklist.file: cannot read '{self.file}'", given=error, allowed="UTF-8") from None
            own = [line.strip() for line in lines if line.strip()]
            if not own:
                raise DataError(f"blocklist.file: '{self.file}' has no phrases", allowed="a phrase on each line")
            listed += own
        return list(dict.fromkeys(phrase.lower() if self.ignore_case else phrase for phrase in listed))

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        """Each by itself: in one pattern, the groups and flags of one were another's."""
        return [re.compile(pattern, re.IGNORECASE if self.ignore_case else 0) for pattern in self.patterns]

    def each(self, record: Record, log: Log) -> Iterable[Record]:
        said = [(turn, what) for turn in record.turns if (what := self._found(turn)) is not None]
        if not said:
            return [record]
        found, detail = [turn for turn, _ in said], repr(said[0][1][:80])
        system, parts = exchanges(record.turns)
        kept = [part for part in parts if not any(turn in found for turn in part)]
        if self.drop == "conversation" or not kept or any(turn in found for turn in system):
            log.drop(record, "blocked", detail)
            return []
        log.cut(record, [turn for part in parts if part not in kept for turn in part], "blocked")
        record.turns = system + [turn for part in kept for turn in part]
        return [record]

    def _found(self, turn: Turn) -> str | None:
        """What stands in the turn that should not; None for nothing."""
        if self.roles and turn.role not in self.roles:
            return None
        text = turn.text.lower() if self.ignore_case else turn.text
        for phrase in self._phrases:
            if phrase in text:
                at = text.index(phrase)
                return turn.text[at : at + len(phrase)] if len(text) == len(turn.text) else phrase
        matches = (pattern.search(turn.text) for pattern in self._patterns)
        return next((match[0] for match in matches if match), None)
