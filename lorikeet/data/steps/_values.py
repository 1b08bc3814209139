"""Plain values as one line of JSON and back, for every value that files can hold.

orjson is several times faster, and refuses some things that files do hold: integers beyond 64 bits, half characters
(lone surrogates), decimals of tables. Those lines the standard library writes, in JSON that every reader takes: half a
character becomes U+FFFD, what is no number null, as orjson writes it, and bytes that are no text are in base64.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from typing import Any

import orjson

from lorikeet.data.json_text import DEEPEST, loads


def to_line(value: Any) -> bytes:
    """One line with its end."""
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except (TypeError, orjson.JSONEncodeError):
        return json.dumps(_plain(value), default=_written).encode() + b"\n"


def from_line(line: bytes) -> Any:
    """The value in a line that `to_line` made."""
    return loads(line, 2 * DEEPEST)  # a row within a list of rows


def _written(value: Any) -> str:
    return b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
