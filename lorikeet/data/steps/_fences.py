"""Code blocks as Markdown fences, and the repair of what copying from a chat's page leaves in them.

A page shows the language and a button above the code; copied as text they become its first line, `pythonCopy code`.
"""

from __future__ import annotations

import re

COPY = re.compile(r"(?:Copy code)+")
_HEADED = re.compile(r"\s*([A-Za-z0-9_+#.\-/]{0,20}) ?(?:Copy code)+[ \t]*\n?")
_BROKEN = re.compile(r"```[ \t]*\n?([^\n`]{0,20}?) ?(?:Copy code)+[ \t]*\n?(.*?)```", re.DOTALL)
_SIZE = re.compile(r"Copy\d+ chars / \d+ words")
_COUNTER_LINE = re.compile(r"\s*\d{1,3} / \d{1,3}[ \t]*\n+(?=\S)")


def language_and_code(text: str, language: str) -> tuple[str, str]:
    """(language, code) of a block's text, without the page's line above the code; `language` where the page says it."""
    headed = _HEADED.match(text)
    if headed:
        text, language = text[headed.end() :], language or headed[1].lower()
    return language, text.strip("\n").rstrip()


def fence(language: str, code: str) -> str:
    """The block as Markdown; a fence is longer than any in the code."""
    ticks = "```"
    while ticks in code:
        ticks += "`"
    return f"{ticks}{language}\n{code}\n{ticks}"


def repaired(text: str) -> str:
    """Markdown or plain text without what copying left in it: heads of code blocks, empty blocks, sizes, counters."""
    if "Copy code" in text:
        text = _BROKEN.sub(_block, text)
    if " chars / " in text:
        text = _SIZE.sub("", text)
    if counter := _COUNTER_LINE.match(text):
        text = text[counter.end() :]
    return text


def _block(match: re.Match[str]) -> str:
    code = match[2].rstrip()  # not in the pattern, which would look at every space of a run again and again
    return fence(match[1].strip().lower(), code.strip("\n")) if code else ""
