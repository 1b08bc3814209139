"""HTML that is written as its tree is, read in one pass: what a browser writes when a page's part is copied.

Every element has its end tag, in order, and stands where HTML lets it stand without moving it. HTML's rules about the
rest (a `<p>` that ends where the next begins, text that leaves a table, tags left open) are hundreds, and Lexbor knows
them: whatever might need one of them is refused here, which costs time and nothing else.

Whether an element may stand somewhere depends on what is open around it alone. So where a tag leads from such a place
is worked out once and remembered.
"""

from __future__ import annotations

import re
from typing import ClassVar

from lorikeet.data.steps._html_reading import EMPTY, END, Tag, Token

_START = re.compile(r'([a-z][a-z0-9]*)((?:[ \t\n\f]+[a-zA-Z_:@][\w:.@-]*(?:="[^"]*")?)*)[ \t\n\f]*(/?)', re.ASCII)
_ATTRIBUTE = re.compile(r'([a-zA-Z_:@][\w:.@-]*)(?:="([^"]*)")?', re.ASCII)
_END = re.compile(r"/([a-z][a-z0-9]*)[ \t\n\f]*")
_OTHER_ENTITY = re.compile(r"&(?!(?:lt|gt|amp|quot|nbsp|apos|#39|#x27);)")
_PRE_LINE = re.compile(r"(<pre\b[^<>]*>)\n")  # is not of the code, but lets it begin on a line of its own
_SPACE = " \t\n\f"
_MOST = 20_000  # steps that are remembered
_LONG = 500  # characters of a tag from which on it is not: a picture may stand in it
_DEEPEST = 100  # open elements; HTML says nothing of a limit, and readers have theirs far above


def _named(words: str) -> frozenset[str]:
    return frozenset(words.split())


_HEADINGS = _named("h1 h2 h3 h4 h5 h6")
_BLOCKS = _HEADINGS | _named(  # a paragraph ends where one of them begins
    "p div ul ol pre blockquote table section article aside header footer main figure figcaption address details"
)
_PHRASES = _named(
    "span strong b em i u s strike del ins code kbd samp tt var cite dfn small big mark q abbr time sub sup bdi bdo"
)
_ONCE = _named("a button")  # one inside another ends the other
_FOREIGN = {
    "svg": _named("path line polyline polygon rect circle ellipse g"),
    "math": _named(
        "semantics annotation mrow mi mo mn ms mtext mspace mfrac msqrt mroot msub msup msubsup mover munder munderover"
        " mtable mtr mtd mstyle mpadded mphantom menclose"
    ),
}
_TEXTS = _named("annotation mi mo mn ms mtext")  # of math, in which HTML would begin again
_IN_TABLE = {
    "table": _named("thead tbody tfoot"),
    **dict.fromkeys(("thead", "tbody", "tfoot"), _named("tr")),
    "tr": _named("td th"),
}


class _Place:
    """The inside of an element, with all that is open around it."""

    __slots__ = ("inner", "name", "names", "outer", "steps", "takes_text")
    known: ClassVar[int] = 0  # steps worked out so far

    def __init__(self, name: str, outer: _Place | None):
        self.name, self.outer = name, outer
        self.names: tuple[str, ...] = (*outer.names, name) if outer is not None else ()
        self.takes_text = name not in _IN_TABLE
        self.steps: dict[
            str, tuple[_Place, Tag]
        ] = {}  # what stands between < and > -> (where one is behind it, the tag)
        self.inner: dict[str, _Place] = {}

    def step(self, written: str) -> tuple[_Place, Tag] | None:
        """Where a tag leads; None where HTML would not leave it here, or might not."""
        tag = _read(written)
        if tag is None:
            return None
        place: _Place | None = self
        if tag.ends:
            place = self.outer if tag.name == self.name else None
        elif not self._admits(tag.name):
            return None
        elif tag.begins:
            place = self.inner.setdefault(tag.name, _Place(tag.name, self))
        if place is None:
            return None
        if len(written) < _LONG:
            _Place.known += 1
            self.steps[written] = place, tag
        return place, tag

    def _admits(self, name: str) -> bool:
        around = self.names
        if len(around) >= _DEEPEST:
            return False
        foreign = next((tag for tag in around if tag in _FOREIGN), None)
        if foreign is not None:
            return name in _FOREIGN[foreign] and self.name not in _TEXTS
        if self.name in _IN_TABLE:
            return name in _IN_TABLE[self.name]
        if name in _BLOCKS or name == "hr":
            return "p" not in around and not (name in _HEADINGS and not _HEADINGS.isdisjoint(around))
        if name == "li":
            return self.name in ("ul", "ol") and "p" not in around
        return name in _PHRASES or name in EMPTY or name in _FOREIGN or (name in _ONCE and name not in around)


_OUTSIDE = _Place("body", None)


def tokens(html: str) -> list[Token] | None:
    """What stands in a piece of HTML, as `parsed` gives it; None where the HTML does not say it outright."""
    if "<pre" in html:
        html = _PRE_LINE.sub(r"\1", html)
    if "\r" in html or html[:1] == "\ufeff":
        return None
    entities = "&" in html
    if entities and _OTHER_ENTITY.search(html):
        return None
    if _Place.known > _MOST:
        _OUTSIDE.steps.clear()
        _OUTSIDE.inner.clear()
        _Place.known = 0
    pieces = iter(html.lstrip(_SPACE).split("<"))
    text = next(pieces)
    place = _OUTSIDE
    found: list[Token] = []
    for piece in pieces:
        if entities and "&" in text:
            text = _decoded(text)
        written, closed, following = piece.partition(">")
        step = place.steps.get(written) or place.step(written)
        if step is None or not closed or (text and not place.takes_text and text.strip(_SPACE)):
            return None
        place, tag = step
        found.append((text, tag))
        text = following
    found.append((_decoded(text), END))
    return found if place is _OUTSIDE else None


def _read(written: str) -> Tag | None:
    """What a tag says between its brackets; None for one that no browser writes, or that is not known here."""
    if end := _END.fullmatch(written):
        return Tag(end[1], ends=True)
    start = _START.fullmatch(written)
    if start is None or (start[3] and start[1] not in EMPTY):
        return None
    attributes: dict[str, str | None] = {}
    for one in _ATTRIBUTE.finditer(start[2]):
        attributes.setdefault(one[1].lower(), one[2] if one[2] is None else _decoded(one[2]))
    return Tag(start[1], attributes)


def _decoded(text: str) -> str:
    """Text without the entities that a browser writes; `&amp;` last, as what it gives begins no other."""
    text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", "\xa0").replace("&quot;", '"')
    return text.replace("&apos;", "'").replace("&#39;", "'").replace("&#x27;", "'").replace("&amp;", "&")
