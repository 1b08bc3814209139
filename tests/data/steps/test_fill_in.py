"""Identity rows: every spelling of a placeholder is filled in, and a row with one left over is dropped by name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from data.steps.conftest import record, run, step_of
from lorikeet.base.nouns import Origin
from lorikeet.data.steps._record import Record, Turn

SPELLED = {
    "LLaMA-Factory": "I am {{name}}, by {{author}}.",
    "ms-swift": "I am {{NAME}}, by {{AUTHOR}}.",
    "older sets": "I am <NAME>, by <AUTHOR>.",
    "spaces": "I am {{ Name }}, by {{  author}}.",
}


@pytest.mark.parametrize("case", SPELLED)
def test_every_spelling_is_filled_in(case: str) -> None:
    ((kept,), log) = run("fill_in", record("Who are you?", SPELLED[case]), name="Ada", author="the \\1 Society")
    assert kept.texts() == ["Who are you?", "I am Ada, by the \\1 Society."]
    assert log.changed == 1 and log.changes == {"name filled in": 1, "author filled in": 1}


LEFT = {
    "no author": ("I am {{name}}, by {{author}}.", {"name": "Ada"}, "{{author}}"),
    "another one": ("I live in {{ city }}.", {"name": "Ada"}, "{{ city }}"),
    "in angle brackets": ("By <AUTHOR>.", {"name": "Ada"}, "<AUTHOR>"),
}


@pytest.mark.parametrize("case", LEFT)
def test_a_row_with_a_placeholder_left_is_dropped_as_it_was(case: str) -> None:
    text, options, left = LEFT[case]
    kept, log = run("fill_in", record("{{name}}?", text), **options)
    assert not kept and log.dropped == {"a placeholder is left": 1} and log.entries[0]["detail"] == left
    assert [turn["value"] for turn in log.entries[0]["content"]["conversations"]] == ["{{name}}?", text]
    ((kept_row,), _) = run("fill_in", record("{{name}}?", text), left="keep", **options)
    assert kept_row.texts()[0] == "Ada?" and left in kept_row.texts()[1]


def test_other_placeholders_columns_and_calls() -> None:
    call = {"tool_calls": [{"function": {"name": "say", "arguments": {"who": "{{name}}"}}}]}
    given = Record(Origin("a", 0), [Turn("user", "In {{City}}", "{{name}}"), Turn("assistant", "", "", call)])
    ((kept,), _) = run("fill_in", given, name="Ada", others={"CITY": "Turin"})
    assert kept.turns[0].text == "In Turin\nAda"
    assert kept.turns[1].rest["tool_calls"][0]["function"]["arguments"] == {"who": "Ada"}


def test_what_only_looks_like_a_placeholder_stays() -> None:
    texts = ("{{ a.b }} {{ f(x) }} {% x %} {{'name'}} {{...}}", "<name> <b>NAME</b> {name} {{ 'Say hello' }} <Author>")
    ((kept,), log) = run("fill_in", record(*texts), name="Ada", author="B")
    assert kept.texts() == list(texts) and not log.changed


REFUSED: list[dict[str, Any]] = [
    {}, {"others": {}}, {"name": " "}, {"name": "{{author}}"}, {"others": {"{{name}}": "x"}}, {"others": {"": "x"}},
    {"name": "Ada", "left": "guess"}, {"name": 3},
]  # fmt: skip


@pytest.mark.parametrize("options", REFUSED, ids=str)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        step_of("fill_in", **options)
