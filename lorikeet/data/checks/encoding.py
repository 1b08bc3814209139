"""Text that was damaged on its way: decoded wrongly, cut inside a character, or with bytes of something else."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lorikeet.data.checks._contract import Check, Finding, Row, excerpt

# the first byte of a UTF-8 character and what may follow it, as Windows-1252 and Latin-1 show them
_LATER = "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(0x80, 0xC0))
_LATER += "".join(map(chr, range(0x80, 0xA0)))
_MOJIBAKE = re.compile(rf"[Â-ß][{re.escape(_LATER)}]|[à-ï][{re.escape(_LATER)}]{{2}}|[ð-ô][{re.escape(_LATER)}]{{3}}")
# of single wrong letters: Latin letters and signs, and what word processors put around words
_PLAUSIBLE = re.compile("[\u00a0-\u017f\u2010-\u2044\u20ac\u2122\ufeff\ufffd\ufb00-\ufb06]|[\U0001f000-\U0001faff]")
_QUOTES = tuple("\u201c\u201d\u2018\u2019\u00bb\u00ab")
_GBK = ("锟斤拷", "烫烫烫", "屯屯屯")  # U+FFFD read as GBK; memory that Windows' compilers fill in
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")


class Encoding(Check):
    """U+FFFD, NUL and other control characters, half a surrogate pair, or UTF-8 read as another encoding."""

    reason = "The model learns the damage and writes it."
    fix = "Read the source again with its true encoding, or leave the rows out."

    def row(self, row: Row) -> Iterator[Finding]:
        for index, message in enumerate(row.messages):
            found = damage(message.content)
            if found is not None:
                what, at = found
                yield row.found(f"{what} in: {excerpt(message.content, at)}", index)


def damage(text: str) -> tuple[str, int] | None:
    """(what is wrong, at which character), of the first damage in `text`; None for a sound text."""
    if (at := text.find("\ufffd")) >= 0:
        return "U+FFFD, a character that could not be decoded", at
    if match := _CONTROL.search(text):
        return f"the control character U+{ord(match[0]):04X}", match.start()
    for word in _GBK:
        if word in text:
            return f"'{word}', which is damage read as GBK", text.index(word)
    if text.isascii():
        return None
    for match in _MOJIBAKE.finditer(text):
        meant = _meant(match[0])
        # CAFÉ”: a word in capitals in front of a closing quotation mark
        quoted = match[0][1:] in _QUOTES and text[: match.start()][-1:].isupper()
        if meant is not None and _PLAUSIBLE.match(meant) and not quoted:
            return f"'{match[0]}', which is '{meant}' in UTF-8 read as Windows-1252", match.start()
    run = re.search(rf"(?:{_MOJIBAKE.pattern}){{3,}}", text)
    if run and _meant(run[0]) is not None:
        return f"'{run[0][:12]}', which is '{(_meant(run[0]) or '')[:6]}' in UTF-8 read as Windows-1252", run.start()
    return None


def _meant(shown: str) -> str | None:
    try:
        return b"".join(_byte(character) for character in shown).decode("utf-8")
    except UnicodeError:
        return None


def _byte(character: str) -> bytes:
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")
