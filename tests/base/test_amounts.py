"""Amounts as people write them."""

from __future__ import annotations

import pytest

from lorikeet.base import amounts


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("8GiB", 8 << 30), ("8 GB", 8 * 10**9), ("8g", 8 << 30), ("1.5MiB", 3 << 19), (4096, 4096), ("2T", 2 << 40),
     ("9" * 400 + "GiB", None), ("lots", None), ("-1GiB", None), ("8 apples", None), ("", None), (True, None)],
)  # fmt: skip
def test_sizes(text: str | int, wanted: int | None) -> None:
    assert amounts.size_bytes(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("2h30m", 9000), ("45min", 2700), ("90s", 90), ("90", 90), (90.5, 90.5), ("1d 12h", 129600), ("1.5h", 5400),
     ("9" * 400, None), ("1h" + "9" * 400 + "m", None), ("2h30", None), ("half an hour", None), ("-5m", None),
     ("3y", None), ("", None)],
)  # fmt: skip
def test_durations(text: str | float, wanted: float | None) -> None:
    assert amounts.seconds(text) == wanted


def test_counts_and_words() -> None:
    assert amounts.count("10M") == 10**7 and amounts.count("500k") == 500_000 and amounts.count(7) == 7
    assert amounts.count("many") is None and amounts.count("9" * 400) is None
    assert amounts.duration(45.2) == "45 s" and amounts.duration(720) == "12 min"
    assert amounts.duration(9000) == "2 h 30 min"
    assert amounts.mib(120 << 20) == "120 MiB" and amounts.mib(3 << 29) == "1.50 GiB"
