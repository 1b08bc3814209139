"""Which language a conversation is in, found by Chromium's identifier (CLD2, the one FastChat asks through polyglot).

One answer for the whole conversation, code blocks left out. What is too short to tell, mixed, or below the confidence
asked for is "unknown", and an option of its own says what becomes of that: nothing is guessed.

Most long conversations are in one language throughout, and then pieces from all over one say so as surely as the whole
text. So those are asked first, and the whole only where they are not nearly all in one language.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

from lorikeet.base.errors import RecipeError, nearest
from lorikeet.base.extras import require
from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import Record

UNKNOWN = "unknown"
_RENAMED = {"iw": "he", "jw": "jv"}  # codes of before 1989, and ISO's
_MEANT = {"jp": "ja", "cn": "zh", "kr": "ko", "ua": "uk", "gr": "el", "cz": "cs", "nb": "no", **_RENAMED}
_NO_WORDS = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|<[^<>\n]{1,200}>", re.DOTALL)
_WORDS = re.compile(r"[^\W\d_]+")
_ENOUGH = 4_000  # characters that decide; more of them say the same
_OF_A_TURN = 1_000  # characters of each turn among them, so that both speakers are heard
_START = 2_000  # characters in which letters are counted, to tell whether there are enough
_PIECES, _OF_A_PIECE = 8, 100  # the pieces of a long text, and the characters of each
_LONG = 1_600  # characters from which on a text is long
_NEARLY_ALL = 97  # percent of the pieces; then what is asked of the whole (up to _MOST_ASKED) is sure as well
_MOST_ASKED = 0.9
_UNREADABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U0001fffe-\U0010ffff]")
_DENSE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # a character says as much as a few letters
_CONTROLS = bytes(0x20 if (n < 0x20 and n not in (9, 10)) or n == 0x7F else n for n in range(256))  # as _UNREADABLE


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
        cld = require("pycld2", extra="data", needed_by="the step language")
        known = {_iso(code) for name, code in cld.LANGUAGES if name in cld.DETECTED_LANGUAGES} - {"xx"}
        for code in (*self.keep, *self.skip):
            if code not in known:
                raise RecipeError(
                    f"language.{'keep' if self.keep else 'skip'}: '{code}' is no language that is told apart",
                    given=" ".join((*self.keep, *self.skip)),
                    allowed=" ".join(sorted(known, key=lambda one: (len(one), one))),
                    try_=_MEANT.get(code) or nearest(code, known),
                )

    def each(self, record: Record, log: Log) -> Iterable[Record]:
        code, confidence = self._found(_decisive(record.texts()))
        log.see(code)
        detail = f"{code} {confidence:.2f}"
        if code == UNKNOWN:
            if self.unknown == "drop":
                log.drop(record, UNKNOWN, detail)
                return []
        elif not self._stays(code):
            log.drop(record, code, detail)
            return []
        if self.mark is not None:
            record.rest[self.mark] = code
            log.change(record, "language marked")
        return [record]

    def _stays(self, code: str) -> bool:
        return code != UNKNOWN and code not in self.skip and (not self.keep or code in self.keep)

    def _found(self, text: str) -> tuple[str, float]:
        """(ISO code or "unknown", share of the text in it)."""
        if not _has_letters(text, self.min_letters):
            return UNKNOWN, 0.0
        if len(text) >= _LONG and self.min_confidence <= _MOST_ASKED:
            apart = len(text) // _PIECES
            pieces = [text[start : start + _OF_A_PIECE] for start in range(0, apart * _PIECES, apart)]
            code, share = _detected(" ".join(pieces))
            if share * 100 >= _NEARLY_ALL and self._stays(code):  # what is dropped is told the share of the whole
                return code, share
        code, share = _detected(text)
        return (code if share >= self.min_confidence else UNKNOWN), share


def _decisive(texts: Iterable[str]) -> str:
    """The words that decide: each turn's first, without code."""
    kept: list[str] = []
    size = 0
    for text in texts:
        text = text[:_OF_A_TURN]
        kept.append(_NO_WORDS.sub(" ", text) if "`" in text or "<" in text or "://" in text else text)
        size += len(kept[-1])
        if size > _ENOUGH:
            break
    return "\n".join(kept)


def _has_letters(text: str, least: int) -> bool:
    for size in (200, _START):  # the first words are enough, nearly always
        start = text[:size]
        if sum(map(len, _WORDS.findall(start))) + (0 if start.isascii() else 3 * len(_DENSE.findall(start))) >= least:
            return True
    return False


def _detected(text: str) -> tuple[str, float]:
    """(ISO code, share of the text in it), or "unknown" with what share there was."""
    detect = require("pycld2", extra="data", needed_by="the step language").detect
    try:
        if text.isascii():
            reliable, _, found = detect(text.encode().translate(_CONTROLS))
        else:
            reliable, _, found = detect(_UNREADABLE.sub(" ", text))
    except ValueError:  # bytes that CLD2 refuses
        return UNKNOWN, 0.0
    except Exception as error:  # pycld2.error is no ValueError
        if type(error).__module__ != "pycld2":
            raise
        return UNKNOWN, 0.0
    _, code, percent, _ = found[0]
    return (_iso(code) if reliable and code != "un" else UNKNOWN), percent / 100


def _iso(code: str) -> str:
    """The ISO code of a language that CLD2 names, with its script perhaps: zh-Hant is zh."""
    code = code.split("-")[0]
    return _RENAMED.get(code, code)
