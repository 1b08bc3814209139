"""Bars that hold every row, figures, and a drawing with the limit in it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorikeet.data.histogram import HEIGHT, WIDTH, Histogram, as_svg, as_text


def facts(histogram: Histogram, limit: int | None) -> dict:
    return {"unit": "tokens", "max_length": limit, **histogram.as_dict(limit)}


@given(st.lists(st.integers(0, 100_000), max_size=40), st.one_of(st.none(), st.integers(8, 5000)))
def test_bars_hold_every_row(lengths: list[int], limit: int | None) -> None:
    histogram = Histogram()
    for length in lengths:
        histogram.add(length)
    bars = histogram.bars(limit)
    assert sum(count for _, _, count in bars) == sum(length > 0 for length in lengths)
    assert [low for low, _, _ in bars[1:]] == [high + 1 for _, high, _ in bars[:-1]]
    if limit is not None and histogram.beyond(limit):
        assert limit in [high for _, high, _ in bars]
        assert sum(count for low, _, count in bars if low > limit) == histogram.beyond(limit)
    told = facts(histogram, limit)
    lines = as_text(told)
    assert len(lines) <= 18
    drawing = ElementTree.fromstring(as_svg(told, "rows & <lengths>"))
    for one in drawing.iter():
        x, wide = float(one.attrib.get("x", 0)), float(one.attrib.get("width", 0))
        if one.tag.endswith("rect"):
            assert 0 <= x <= WIDTH and x + wide <= WIDTH + 0.2 and float(one.attrib["height"]) <= HEIGHT


def test_figures() -> None:
    histogram = Histogram()
    for length in [*range(1, 101), 123_456]:
        histogram.add(length)
    told = histogram.as_dict(100)
    assert (told["median"], told["p90"], told["longest"], told["beyond_max_length"]) == (51, 91, 123_456, 1)
    assert told["mean"] == pytest.approx((5050 + 123_000) / 101, abs=0.1)
