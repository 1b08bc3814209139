"""HTML as a flat list of what stands in it, in order: a text and the tag behind it, again and again.

Lexbor (selectolax) reads any HTML as browsers do, and its tree is laid out flat here. Most of what it would be given
was written by a browser, though, and such text says its tree outright: `_html_written` reads that several times faster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lorikeet.base.extras import require
from lorikeet.data.steps._html_tags import FURNITURE

EMPTY = frozenset(("br", "hr", "img", "input", "wbr"))  # elements that are one tag, and have nothing inside
_LINES = frozenset(("div", "p", "li", "tr"))  # elements that are a line of their own, in code too
_BREAKS = _LINES | {"br"}


@dataclass(slots=True)
class Tag:
    """Where an element begins or ends, or one of EMPTY. Equal tags may be one object, so nobody changes them."""

    name: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    ends: bool = False
    begins: bool = field(init=False)  # whether a tag that ends the element is to come

    def __post_init__(self) -> None:
        self.begins = not self.ends and self.name not in EMPTY

    def attribute(self, name: str) -> str:
        """Its value; "" where it has none."""
        return self.attributes.get(name) or ""


Token = tuple[str, Tag]  # (the text before it, a tag)
BODY, END = Tag("body"), Tag("body", ends=True)


def parsed(html: str) -> list[Token]:
    """The body of a page, or piece of one, as browsers read it; END is last."""
    lexbor = require("selectolax.lexbor", extra="data", needed_by="the step html_to_markdown")
    found: list[Token] = []
    text = ""
    around: list[tuple[Any, Tag]] = []  # (what follows an element, its end), outermost first
    body = lexbor.LexborHTMLParser(html).body
    node = body.first_child if body is not None else None
    while node is not None or around:
        if node is None:
            node, tag = around.pop()
            found.append((text, tag))
            text = ""
            continue
        name = node.tag
        if name == "-text":
            text += node.text_content or ""
        elif name[0] not in "-!_":  # a comment and its like
            found.append((text, Tag(name, node.attributes)))
            text = ""
            if name not in EMPTY:
                around.append((node.next, Tag(name, ends=True)))
                node = node.first_child
                continue
        node = node.next
    return [*found, (text, END)]


def text_of(tokens: Iterable[Token]) -> str:
    """The text of tokens with all its spaces, as code has them; a break and the end of a block end a line."""
    tokens = list(tokens)
    if _BREAKS.isdisjoint([tag.name for _, tag in tokens]):
        return "".join([text for text, _ in tokens])
    found = ""
    parts: list[str] = []
    for text, tag in tokens:
        found = text or found  # the last text there was
        parts.append(text)
        if tag.name == "br" or (tag.ends and tag.name in _LINES and found and found[-1] != "\n"):
            parts.append("\n")
            found = "\n"
    return "".join(parts)


def shown(tokens: Iterable[Token]) -> list[Token]:
    """The tokens without the text of the page's furniture."""
    found: list[Token] = []
    depth = 0
    for text, tag in tokens:
        found.append(("" if depth else text, tag))
        if tag.begins and (depth or tag.name in FURNITURE):
            depth += 1
        elif tag.ends and depth:
            depth -= 1
    return found


def first(tokens: list[Token], name: str, **attributes: str) -> tuple[int, int] | None:
    """The first element of that name: where it begins, and the end of the tokens behind that (its end the last)."""
    for start, (_, tag) in enumerate(tokens):
        if tag.name == name and tag.begins and all(tag.attribute(key) == said for key, said in attributes.items()):
            depth = 0
            for place in range(start, len(tokens)):
                depth += -1 if tokens[place][1].ends else tokens[place][1].begins
                if not depth:
                    return start, place + 1
    return None
