"""HTML to Markdown, where a turn is HTML: ShareGPT's conversations are pages, copied.

A turn is converted if it begins with one of HTML's tags and ends with one, or bears the marks of ChatGPT's page. A
question about HTML does neither, and stays as it is (FastChat converts every turn, and eats the tags people ask about).
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from html.entities import html5
from typing import Literal

from pydantic import Field

from lorikeet.base.extras import require
from lorikeet.data.steps import _fences, _html, _html_tags
from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import Record, Turn

_BEGINS = re.compile(r"\s*<([a-zA-Z][a-zA-Z0-9]*)(?=[\s/>])[^<]*?>")
_ENDS = re.compile(r"(?:</([a-zA-Z][a-zA-Z0-9]*)\s*>|<(?:br|hr|img|input)\b[^<>]*>)\s*$")
_ANY = re.compile(r"<(?:p|div|ul|ol|li|pre|table|h[1-6]|blockquote|br|strong|em|code|span)\b[^<>]*>", re.IGNORECASE)
_PAGE = ("html", "head", "body", "script", "style", "title", "meta", "link", "svg", "template")
_MARKS = ('<div class="markdown', "Copy code</button>", '<code class="hljs', '<code class="!whitespace')
_ESCAPED = re.compile(r"&(?:lt|gt|amp|quot|nbsp|apos|#\d{1,6}|#x[0-9a-fA-F]{1,5});")
_ENTITY = re.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]*|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")


class HtmlToMarkdown(Step):
    """Turns that are HTML become Markdown: code with its language, lists, tables, math; the page's furniture goes."""

    kind: Literal["html_to_markdown"] = "html_to_markdown"
    which: Literal["pages", "any", "all"] = Field(
        "pages",
        description="Turns to convert: pages (begin and end with a tag, or come from ChatGPT's page), any with one of "
        "HTML's usual tags, or all.",
    )
    repair: bool = Field(
        True, description='Repair turns of plain text too: "Copy code" in fences, "n / n" counters, sizes, entities.'
    )

    def start(self) -> None:
        require("selectolax.lexbor", extra="data", needed_by="the step html_to_markdown")

    def each(self, record: Record, log: Log) -> Iterable[Record]:
        pages: list[Turn] = []
        others: list[Turn] = []
        for turn in record.turns:
            (pages if self.is_page(turn.text) else others).append(turn)
        try:
            converted = sum(turn.apply(_html.to_markdown) for turn in pages)
        except _html.TooDeep:
            log.drop(record, "HTML nested too deeply", f"more than {_html.DEEPEST} levels")
            return []
        if converted:
            log.change(record, "HTML to Markdown")
        if self.repair:
            self._repair(others, record, log, bool(pages))
        return [record]

    def is_page(self, text: str) -> bool:
        """Whether a turn is to be converted."""
        if self.which == "all":
            return True
        if "<" not in text:
            return False
        if self.which == "any":
            return _ANY.search(text) is not None
        if any(mark in text for mark in _MARKS):
            return True
        begins, ends = _BEGINS.match(text), _ENDS.search(text[-80:])
        if begins is None or ends is None:
            return False
        return all(tag is None or _is_content(tag.lower()) for tag in (begins[1], ends[1]))

    def _repair(self, turns: list[Turn], record: Record, log: Log, page: bool) -> None:
        if sum([turn.apply(_fences.repaired) for turn in turns]):
            log.change(record, "leftovers of copying")
        if page and sum([turn.apply(_unescaped) for turn in turns]):  # a page's question was cut out with its entities
            log.change(record, "entities")


def _is_content(tag: str) -> bool:
    return tag in _html_tags.TAGS and tag not in _PAGE


def _unescaped(text: str) -> str:
    """Text without entities, if it is escaped: then it has no bare angle bracket."""
    if "&" not in text or "<" in text or ">" in text or not _ESCAPED.search(text):
        return text
    return _ENTITY.sub(_character, text)


def _character(entity: re.Match[str]) -> str:
    """What an entity stands for; `&copy=1` in an address is none, nor is `&notit;`."""
    name = entity[0][1:]
    return html.unescape(entity[0]) if name[0] == "#" else html5.get(name, entity[0])
