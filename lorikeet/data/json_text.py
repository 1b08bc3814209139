"""JSON text to values, as orjson reads it, but with every whole number exact; a table's bytes as text.

orjson makes a float of an integer beyond 64 bits, without a word: an id, or the argument of a call, would come out as
1.2345678901234568e+29. The standard library keeps it, and is asked where such a float came back.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

DEEPEST = 200  # levels of a row; what writes or shows a value goes down by recursion, and has its end below a thousand
_BEYOND = 2.0**63


def loads(text: str | bytes, deepest: int = DEEPEST) -> Any:
    """The value in `text`. Raises orjson.JSONDecodeError, also for more than `deepest` levels."""
    value = orjson.loads(text)
    large, deep = _look(value, deepest)
    if deep:
        raise orjson.JSONDecodeError("nested too deeply", text if isinstance(text, str) else text.decode(), 0)
    return json.loads(text) if large else value


def is_too_deep(value: Any) -> bool:
    """Whether a value that JSON can hold has more levels than a row may have."""
    return _look(value, DEEPEST)[1]


def texts(value: Any) -> Any:
    """A table's value with its bytes as text, where they are UTF-8: older writers of parquet call text so."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:  # an image
            return value
    if isinstance(value, dict):
        return {key: texts(one) for key, one in value.items()}
    return [texts(one) for one in value] if isinstance(value, list) else value


def _look(value: Any, deepest: int) -> tuple[bool, bool]:
    """(whether a float in it may have been an integer, whether it has more levels than `deepest`)."""
    level: list[Any] = [[value]]
    large = False
    for _ in range(deepest + 1):
        below: list[Any] = []
        for one in level:
            for item in one.values() if type(one) is dict else one:
                kind = type(item)
                if kind is dict or kind is list:
                    below.append(item)
                elif kind is float and not -_BEYOND < item < _BEYOND:
                    large = True
        if not below:
            return large, False
        level = below
    return large, True
