"""Plain values as one line of JSON and back, for every value that JSON files can hold.

orjson is several times faster, and refuses two things that files do hold: integers beyond 64 bits, and half characters
(lone surrogates). Those lines the standard library writes, with escapes.
"""

from __future__ import annotations

import json
from typing import Any

import orjson


def to_line(value: Any) -> bytes:
    """One line with its end."""
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except (TypeError, orjson.JSONEncodeError):
        return json.dumps(value, default=str).encode() + b"\n"


def from_line(line: bytes) -> Any:
    """The value in a line that `to_line` made."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line)
