"""Which language a conversation is in, found by Chromium's identifier (CLD2, the one FastChat asks through polyglot).

One answer for the whole conversation, code blocks left out. What is too short to tell, mixed, or below the confidence
asked for is "unknown", and an option of its own says what becomes of that: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

from lorikeet.base.extras import require
from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import Record

UNKNOWN = "unknown"
_NO_WORDS = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|<[^<>\n]{1,200}>", re.DOTALL)
_WORDS = re.compile(r"[^\W\d_]+")
_ENOUGH = 4_000  # characters that decide; more of them say the same
_OF_A_TURN = 1_000  # characters of each turn among them, so that both speakers are heard
_START = 2_000  # characters in which letters are counted, to tell whether there are enough
_UNREADABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U0001fffe-\U0010ffff]")
_DENSE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # a character says as much as a few letters


class Language(Step):
    """Conversations of the languages asked for, by ISO code (en, zh, de, ...)."""

    kind: Literal["language"] = "language"
    keep: list[str] = Field([], description="Keep only these languages.")
    skip: list[str] = Field([], description="Drop these languages.")
    unknown: Literal["keep", "drop"] = Field("keep", description="What becomes of a conversation that nobody can tell.")
    min_confidence: float = Field(
        0.6, ge=0, le=1, description="Share of the text that must be in the language for it to be the conversation's."
    )
    min_letters: int = Field(20, ge=1, description="Fewer letters than this are too few to tell.")
    mark: str | None = Field(
        None, min_length=1, description="A column to write the language to; null writes it nowhere."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Language:
        if self.keep and self.skip:
            raise ValueError("keep and skip contradict each other: give one")
        for code in (*self.keep, *self.skip):
            if not re.fullmatch(r"[a-z]{2,3}", code):
                raise ValueError(f"'{code}' is no language code such as en or zh")
        return self

    def start(self) -> None:
        require("pycld2", extra="data", needed_by="the step language")

    def each(self, record: Record, log: Log) -> Iterable[Record]:
        code, confidence = identify(record.texts(), self.min_letters, self.min_confidence)
        log.see(code)
        detail = f"{code} {confidence:.2f}"
        if code == UNKNOWN:
            if self.unknown == "drop":
                log.drop(record, UNKNOWN, detail)
                return []
        elif (self.keep and code not in self.keep) or code in self.skip:
            log.drop(record, code, detail)
            return []
        if self.mark is not None:
            record.rest[self.mark] = code
            log.change(record, "language marked")
        return [record]


def identify(texts: Iterable[str], min_letters: int, min_confidence: float) -> tuple[str, float]:
    """(ISO code or "unknown", share of the text in it) of a conversation's texts."""
    detect = require("pycld2", extra="data", needed_by="the step language").detect
    kept: list[str] = []
    size = 0
    for text in texts:
        text = text[:_OF_A_TURN]
        kept.append(_NO_WORDS.sub(" ", text) if "`" in text or "<" in text or "://" in text else text)
        size += len(kept[-1])
        if size > _ENOUGH:
            break
    whole = _UNREADABLE.sub(" ", "\n".join(kept))
    letters = sum(map(len, _WORDS.findall(whole[:_START]))) + 3 * len(_DENSE.findall(whole[:_START]))
    if letters < min_letters:
        return UNKNOWN, 0.0
    try:
        reliable, _, found = detect(whole)
    except ValueError:  # bytes that CLD2 refuses
        return UNKNOWN, 0.0
    except Exception as error:  # pycld2.error is no ValueError
        if type(error).__module__ != "pycld2":
            raise
        return UNKNOWN, 0.0
    _, code, percent, _ = found[0]
    confidence = percent / 100
    if not reliable or code == "un" or confidence < min_confidence:
        return UNKNOWN, confidence
    return code.split("-")[0], confidence
