"""Turns that say the same again and again: a digit nine times, a character for lines, a sentence without end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import Literal

from pydantic import Field, model_validator

from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import Record

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")
_DIGITS = "a digit repeated"
MOST_REPEATED = 10_000  # in a row: a pattern of so many is made, and ten texts as long
_FEWEST_WORDS = 50  # a share of fewer says nothing


class Repetition(Step):
    """Conversations with a turn that repeats itself."""

    kind: Literal["repetition"] = "repetition"
    digits: int | None = Field(
        None,
        ge=2,
        le=MOST_REPEATED,
        description="One digit at least so many times in a row; FastChat's --reduce-rep is 9.",
    )
    characters: int | None = Field(
        None, ge=2, le=MOST_REPEATED, description="One letter or digit at least so many times in a row."
    )
    share: float | None = Field(
        None, gt=0, lt=1, description="More than this share of a turn's phrases (of `words` words) stood in it before."
    )
    words: int = Field(8, ge=2, le=100, description="How many words a phrase of `share` has.")
    roles: list[Literal["system", "user", "assistant", "tool"]] = Field(
        [], description="Whose turns to look at; empty: everyone's."
    )

    @model_validator(mode="after")
    def _has_a_rule(self) -> Repetition:
        if self.digits is None and self.characters is None and self.share is None:
            raise ValueError("needs one of digits, characters and share")
        return self

    @cached_property
    def _runs(self) -> list[tuple[str, re.Pattern[str]]]:
        rules = ((_DIGITS, r"\d", self.digits), ("a character repeated", r"[^\W_]", self.characters))
        return [(reason, re.compile(rf"({what})\1{{{most - 1}}}")) for reason, what, most in rules if most is not None]

    @cached_property
    def _digit_runs(self) -> list[str]:
        return [digit * (self.digits or 1) for digit in "0123456789"]

    def each(self, record: Record, log: Log) -> Iterable[Record]:
        for turn in record.turns:
            if self.roles and turn.role not in self.roles:
                continue
            text = turn.text
            for reason, run in self._runs:
                if reason == _DIGITS and text.isascii() and not any(digits in text for digits in self._digit_runs):
                    continue  # ten searches for a text are many times faster than one for a pattern
                if found := run.search(text):
                    log.drop(record, reason, repr(text[found.start() : found.end() + 12]))
                    return []
            if self.share is not None and (said := repeated_share(text, self.words)) > self.share:
                log.drop(record, "phrases repeated", f"{said:.2f} of a turn's")
                return []
        return [record]


def repeated_share(text: str, length: int) -> float:
    """The share of a text's phrases of `length` words that stood in it before; 0 for a short text."""
    words = _WORD.findall(text)
    if len(words) < max(_FEWEST_WORDS, 2 * length):
        return 0.0
    phrases = list(zip(*(words[start:] for start in range(length))))
    return 1 - len(Counter(phrases)) / len(phrases)
