"""Scalars mean what people mean, and every key knows its line."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet.base.errors import RecipeError
from lorikeet.base.yaml_lines import dump, parse, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("none", "none"),
        ("010", 10),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("[a, 1, {b: 2}]", ["a", 1, {"b": 2}]),
        ("-.inf", -math.inf),
        ("=", "="),
    ],
)
def test_scalars(text: str, value: object) -> None:
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_places() -> None:
    tree = parse("a: 1\nb:\n  c: [1,\n    2]\n  d: {e: 3}\n", "r.yaml")
    assert tree.values == {"a": 1, "b": {"c": [1, 2], "d": {"e": 3}}}
    assert tree.place(("b", "c", 1)) == "r.yaml:4"
    assert tree.place(("b", "d", "e")) == "r.yaml:5"
    assert tree.place(("b", "d", "missing")) == "r.yaml:5"
    assert tree.place(("z",)) == "r.yaml"
    tree.put(("b", "d"), 4, "the command line")
    assert tree.place(("b", "d", "e")) == "the command line"


def test_merge_keys() -> None:
    tree = parse("x: &x {a: 1, b: 2}\ny:\n  b: 3\n  <<: *x\n", "r.yaml")
    assert tree.values["y"] == {"a": 1, "b": 3}
    assert tree.place(("y", "b")) == "r.yaml:3"
    assert tree.place(("y", "a")) == "r.yaml:1"


def test_aliases_cannot_grow_without_end() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(RecipeError, match="repeats itself"):
        parse("\n".join(lines), "r.yaml")


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10)
keys = st.text("ab", min_size=1, max_size=3)
trees = st.recursive(
    plain, lambda below: st.lists(below, max_size=3) | st.dictionaries(keys, below, max_size=3), max_leaves=6
)


@settings(deadline=None)  # the machine may be busy
@given(st.dictionaries(keys, trees, max_size=4))
def test_what_is_written_reads_back(values: dict[str, object]) -> None:
    text = dump(values)
    if values:
        assert parse(text, "r.yaml").values == values


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text, "r.yaml")
    except RecipeError as error:
        assert len(str(error).split("\n")) <= 4
