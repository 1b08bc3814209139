"""Which scripts and languages the texts are written in, and replies in another one than their question.

A script is told from the letters. Languages that share one are told apart by the identifier of the cleaning step
`language`, where its package is installed; what is too short or too mixed for it is "unknown" and stays out of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from lorikeet.base.errors import MissingExtra
from lorikeet.base.nouns import Origin
from lorikeet.data.checks._contract import Check, Finding, Row, Setting, excerpt
from lorikeet.data.steps._contract import Log
from lorikeet.data.steps._record import Record, Turn
from lorikeet.data.steps.language import UNKNOWN, Language

# what is counted is what the cleaning step would say; a finding is made of longer texts that leave no doubt
_ENOUGH_LETTERS, _SURE = 60, 0.9
_FEWEST = 8  # letters, below which a text says nothing about its script
_CLEAR = 0.6  # share of the letters that makes a text's script
_TRACE = 0.05  # share below which a script is not what a text is written in
_NAMES = {"HIRAGANA": "Japanese", "KATAKANA": "Japanese", "CJK": "Han"}
# a question that asks for another language gets one
_ASKS = re.compile(
    r"translat|language|\b(?:chinese|mandarin|cantonese|japanese|korean|russian|ukrainian|arabic|persian|hindi|urdu|bengali"
    r"|tamil|greek|hebrew|thai|vietnamese|indonesian|turkish|english|french|spanish|german|italian|portuguese|dutch|polish"
    r"|swedish|danish|norwegian|finnish|czech|hungarian|romanian|latin)\b"
    "|翻译|翻譯|译成|译为|英文|英语|日语|日文|中文|法语|德语|俄语|韩语|西班牙语|葡萄牙语|意大利语|阿拉伯语|перевед|перевод"
    "|code|python|javascript|java|sql|html|代码|程序",
    re.IGNORECASE,
)


class Languages(Check):
    """The share of each script and language among the replies; and replies in another one than their question."""

    reason = "A model that answers in another language than it was asked in learned that from such rows."
    fix = "lorikeet data clean with language, or leave the rows out, unless they are meant (translations)."

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self._replies: Counter[str] = Counter()
        self._characters: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()
        self._usual = Language(mark="language")
        self._strict = Language(min_letters=_ENOUGH_LETTERS, min_confidence=_SURE, mark="language")
        self._identifies = _is_installed(self._usual)

    def row(self, row: Row) -> Iterator[Finding]:
        for index, reply in row.replies():
            letters = scripts(reply.content)
            self._characters.update(letters)
            script = main_script(letters)
            self._replies[script or "unclear"] += 1
            language = self._language(reply.content, self._usual)
            self._languages[language] += 1
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
            elif expected == script and language != UNKNOWN and not _ASKS.search(before.content):
                if self._language(before.content, self._usual) in (UNKNOWN, language):
                    continue
                asked_in, told = (self._language(one.content, self._strict) for one in (before, reply))
                if UNKNOWN not in (asked_in, told) and asked_in != told:
                    yield row.found(f"asked in '{asked_in}', answered in '{told}': {excerpt(reply.content)}", index)

    def _language(self, text: str, step: Language) -> str:
        """The ISO code of a text's language, or "unknown"."""
        if not self._identifies:
            return UNKNOWN
        record = Record(Origin("", 0), [Turn("assistant", text)])
        return next((str(one.rest["language"]) for one in step.each(record, Log("language"))), UNKNOWN)

    def facts(self) -> dict[str, Any]:
        told = {"replies": dict(self._replies.most_common(12)), "letters": dict(self._characters.most_common(12))}
        return told | ({"languages": dict(self._languages.most_common(12))} if self._identifies else {})


def _is_installed(step: Language) -> bool:
    """Whether the step has its package; the mix by script needs none."""
    try:
        step.start()
    except MissingExtra:
        return False
    return True


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
