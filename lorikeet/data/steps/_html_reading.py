"""HTML as a flat list of what stands in it, in order: a text and the tag behind it, again and again.

Lexbor (selectolax) reads any HTML as browsers do, and its tree is laid out flat here. Most of what it would be given
was written by a browser, though, and such text says its tree outright: `_html_written` reads that several times faster.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lorikeet.base.extras import require

EMPTY = frozenset(("br", "hr", "img", "input", "wbr"))  # elements that are one tag, and have nothing inside


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
