"""A text that is not known yet, for a template to write: so a rendering is learned once for all texts.

A `Hole` stands where a message's text would. A template may put it down, join it to other text, strip it, and ask
whether it is there; what it does is kept in the hole. Anything else (looking for a tag, cutting, comparing, counting)
would make the rendering depend on the text, and raises `Inspected`. What a template writes without inspecting a hole
it writes the same way around every text that leaves no stripped hole empty.

A hole is marked by private-use characters, which keep their place when the template's output is joined as plain text:

    LEFT? OPEN number CLOSE RIGHT?          LEFT, RIGHT: white space on that side is taken off
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorikeet.base.nouns import Message

OPEN, CLOSE, LEFT, RIGHT = "\uf8d0", "\uf8d1", "\uf8d2", "\uf8d3"
KINDS = 3  # message i has the holes 3 i (its text), 3 i + 1 (its question) and 3 i + 2 (its input)
HOLE = re.compile(f"({LEFT}*{OPEN}\\d+{CLOSE}{RIGHT}*)")


class Inspected(Exception):
    """A template looked into a text, so how it writes depends on it."""


class Hole(str):
    """One or several unknown texts among known ones."""

    __slots__ = ()

    def __str__(self) -> str:
        return self

    def __bool__(self) -> bool:
        return True  # a text that is empty gets no hole

    def __len__(self) -> int:
        raise Inspected

    def __add__(self, other: str) -> str:
        return Hole(str.__add__(self, other))

    def __radd__(self, other: str) -> str:
        return Hole(str.__add__(other, self))

    def strip(self, chars: Any = None, /) -> str:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: Any = None, /) -> str:
        if chars is not None:
            raise Inspected
        plain = str.lstrip(plain_text(self))
        return Hole(plain if plain.startswith(LEFT) or not plain.startswith(OPEN) else LEFT + plain)

    def rstrip(self, chars: Any = None, /) -> str:
        if chars is not None:
            raise Inspected
        plain = str.rstrip(plain_text(self))
        return Hole(plain if plain.endswith(RIGHT) or not plain.endswith(CLOSE) else plain + RIGHT)

    def removesuffix(self, suffix: str, /) -> str:
        """Without known text, or a hole, that it ends with."""
        if not suffix:
            return self
        plain, end = plain_text(self), plain_text(suffix)
        if plain[-1] in (CLOSE, RIGHT) and not end.startswith((OPEN, LEFT)):
            raise Inspected
        if plain.endswith(end):
            rest = plain[: len(plain) - len(end)]
            return Hole(rest) if HOLE.search(rest) else rest
        raise Inspected


def hole(number: int) -> Hole:
    """The unknown text `number`."""
    return Hole(f"{OPEN}{number}{CLOSE}")


def texts_as_holes(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with holes for texts; one with an input has two, and the line end between."""
    found = []
    for index, message in enumerate(messages):
        if not message.content:
            found.append(message)
        elif message.context is None:
            found.append(replace(message, content=hole(KINDS * index)))
        else:
            question, context = hole(KINDS * index + 1), hole(KINDS * index + 2)
            found.append(replace(message, content=question + "\n" + context, context=context))
    return tuple(found)


def plain_text(text: str) -> str:
    """The marks as an ordinary string."""
    return str.__str__(text) if type(text) is str else "".join((text,))


def strip_as(mark: str, text: str) -> str:
    """`text` stripped on the sides that its hole's mark says."""
    text = text.lstrip() if mark.startswith(LEFT) else text
    return text.rstrip() if mark.endswith(RIGHT) else text


def number_of(mark: str) -> int:
    """The number in a hole's mark."""
    return int(mark.strip(LEFT + RIGHT)[1:-1])


def refuse_holes(value: Any) -> None:
    """Raise Inspected where a hole stands anywhere in `value`."""
    if isinstance(value, Hole):
        raise Inspected
    if isinstance(value, Mapping):
        for part in value.items():
            refuse_holes(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            refuse_holes(part)


def _inspected(*_: Any, **__: Any) -> Any:
    raise Inspected


_ALLOWED = {
    "__new__", "__init__", "__init_subclass__", "__subclasshook__", "__class__", "__getattribute__", "__doc__",
    "__setattr__", "__delattr__", "__dir__", "__reduce__", "__reduce_ex__", "__getstate__", "__sizeof__",
    "maketrans", "__getnewargs__",
}  # fmt: skip
for _name in dir(str):
    if _name not in _ALLOWED and _name not in Hole.__dict__:
        setattr(Hole, _name, _inspected)
