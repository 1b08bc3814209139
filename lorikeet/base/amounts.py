"""Amounts as people write them: `8GiB`, `2h30m`, `10M`."""

from __future__ import annotations

import math
import re

_SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_SIZES |= {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "tb": 10**12, "tib": 1 << 40}
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
_NUMBER = r"(\d+(?:\.\d+)?)"


def size_bytes(text: str | float) -> int | None:
    """`8GiB`, `8 GB`, `8g` (GiB) and `8192MiB` as bytes; None for what is no size."""
    return _scaled(text, _SIZES)


def count(text: str | float) -> int | None:
    """`10M`, `500k` and `2.5B` as a whole number; None for what is none."""
    return _scaled(text, _COUNTS)


def seconds(text: str | float) -> float | None:
    """`2h30m`, `45min`, `90s`, `1d 12h` in seconds, and a bare number as seconds; None for what is no duration."""
    said = str(text).lower().replace(" ", "")
    if re.fullmatch(_NUMBER, said):
        return _finite(float(said))
    parts = re.findall(rf"{_NUMBER}([a-z]+)", said)
    whole = "".join(number + unit for number, unit in parts) == said
    if not parts or not whole or any(unit not in _SECONDS for _, unit in parts):
        return None
    return _finite(sum(float(number) * _SECONDS[unit] for number, unit in parts))


def duration(value: float) -> str:
    """Seconds for people: `45 s`, `12 min`, `2 h 30 min`."""
    if value < 120:
        return f"{value:.0f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def mib(size: float) -> str:
    """Bytes for people: `120 MiB`, `1.42 GiB`."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _scaled(text: str | float, units: dict[str, int]) -> int | None:
    match = re.fullmatch(rf"\s*{_NUMBER}\s*([a-zA-Z]*)\s*", str(text))
    if match is None or match[2].lower() not in units:
        return None
    found = _finite(float(match[1]) * units[match[2].lower()])
    return None if found is None else int(found)


def _finite(number: float) -> float | None:
    """None for what so many digits stand for that a float has no room for it."""
    return number if math.isfinite(number) else None
