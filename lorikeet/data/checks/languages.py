"""Which scripts the texts are written in, and replies in another one than their question."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from lorikeet.data.checks._contract import Check, Finding, Row, Setting, excerpt

_FEWEST = 8  # letters, below which a text says nothing about its script
_CLEAR = 0.6  # share of the letters that makes a text's script
_TRACE = 0.05  # share below which a script is not what a text is written in
_NAMES = {"HIRAGANA": "Japanese", "KATAKANA": "Japanese", "CJK": "Han"}
# a question that asks for another language gets one
_ASKS = re.compile(
    "translat|language|in (?:chinese|japanese|korean|russian|arabic|hindi|greek|hebrew|thai|english|french|spanish)"
    "|翻译|翻譯|译成|译为|英文|英语|日语|日文|中文|法语|德语|俄语|韩语|перевед|перевод|code|python|javascript|java|sql|html|代码|程序",
    re.IGNORECASE,
)


class Languages(Check):
    """The share of each script among the replies; and replies whose script is not their question's."""

    reason = "A model that answers in another language than it was asked in learned that from such rows."
    fix = "lorikeet data clean with language, or leave the rows out, unless they are meant (translations)."

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self._replies: Counter[str] = Counter()
        self._characters: Counter[str] = Counter()

    def row(self, row: Row) -> Iterator[Finding]:
        for index, reply in row.replies():
            letters = scripts(reply.content)
            self._characters.update(letters)
            script = main_script(letters)
            self._replies[script or "unclear"] += 1
            before = row.messages[index - 1] if index else None
            if script is None or before is None or before.role != "user":
                continue
            asked = scripts(before.content)
            expected = main_script(asked)
            # a reply may hold many foreign names; one in another language holds next to nothing of the question's
            missing = expected is not None and letters[expected] < _TRACE * sum(letters.values())
            # Latin letters stand in every language's texts: names, code, formulas
            if missing and script not in asked and not _ASKS.search(before.content):
                yield row.found(f"asked in {expected}, answered in {script}: {excerpt(reply.content)}", index)

    def facts(self) -> dict[str, Any]:
        return {"replies": dict(self._replies.most_common(12)), "letters": dict(self._characters.most_common(12))}


def scripts(text: str) -> Counter[str]:
    """How many letters of each script; the first 2,000 characters decide."""
    found: Counter[str] = Counter()
    for character, count in Counter(text[:2000]).items():
        script = _script(character)
        if script is not None:
            found[script] += count
    return found


def main_script(letters: Counter[str]) -> str | None:
    """The script of most letters; None where there are few, or two scripts are about as frequent."""
    total = sum(letters.values())
    if "Japanese" in letters and letters["Japanese"] > 0.1 * total:  # kana among Han characters
        return "Japanese" if total >= _FEWEST else None
    script, count = letters.most_common(1)[0] if letters else ("", 0)
    return script if total >= _FEWEST and count >= _CLEAR * total else None


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str | None:
    """Unicode's names of letters begin with their script: LATIN SMALL LETTER A."""
    if not character.isalpha():
        return None
    word = unicodedata.name(character, "UNKNOWN").split()[0].split("-")[0]
    return _NAMES.get(word, word.capitalize())
