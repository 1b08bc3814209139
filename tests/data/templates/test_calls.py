"""What a template makes of calls is read back, however the reply is cut into pieces."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.templates.families import bind, family, talk
from lorikeet.base.nouns import Message
from lorikeet.data.layout import lay_out
from lorikeet.data.templates._calls import Called, CallReader, JsonForm, ReactForm, Said, call_form

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TEMPLATES = {
    "qwen": bind("qwen", family("qwen2_5")),
    "qwen3": bind("qwen", family("qwen3")),
    "mistral": bind("mistral", family("mistral_v3")),
    "tekken": bind("mistral", family("mistral_tekken")),
    "llama3": bind("llama3", family("llama3_1")),
    "react": bind("react", family("qwen2")),
}
SEVERAL = ["qwen", "qwen3", "mistral", "tekken"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=6),
    lambda inside: st.lists(inside, max_size=2) | st.dictionaries(st.text(max_size=3), inside, max_size=2),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=3)


def call(arguments: dict) -> dict:
    return {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def written(name: str, message: Message) -> str:
    """The reply as the model learns to write it, without its end."""
    layout = lay_out(talk(("user", "q"), message, tools=(TOOL,)), TEMPLATES[name], {1})[-1]
    return "".join(one.text for one in layout.segments if one.reply and one.part == "content")


def read(reader: CallReader, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """(text, [(name, arguments)]) of a reply."""
    text, calls, done = "", [], []
    for piece in [one for part in pieces for one in reader.feed(part)] + reader.end():
        if isinstance(piece, Said):
            text += piece.text
            continue
        assert isinstance(piece, Called)
        if piece.name is not None:
            assert piece.index == len(calls)
            calls.append([piece.name, ""])
        calls[piece.index][1] += piece.arguments
        done += [piece.index] if piece.done else []
    assert done == list(range(len(calls)))
    return text, [tuple(one) for one in calls]


def pieces(text: str, cuts: list[int]) -> list[str]:
    at = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(at)]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=25)
@given(arguments=ARGUMENTS, cuts=st.lists(st.integers(0, 400), max_size=8))
def test_a_call_is_read_back(name: str, arguments: dict, cuts: list[int]) -> None:
    form = call_form(TEMPLATES[name])
    assert form is not None
    said = written(name, Message("assistant", "", tool_calls=(call(arguments),)))
    text, calls = read(form.reader(["weather"]), pieces(said, cuts))
    assert [(called, json.loads(told)) for called, told in calls] == [("weather", arguments)]
    assert text.replace("<think>", "").replace("</think>", "").strip() == ""


@pytest.mark.parametrize("name", SEVERAL)
@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 400), max_size=12))
def test_several_calls_are_read_back(name: str, cuts: list[int]) -> None:
    form = call_form(TEMPLATES[name])
    several = ({"city": "Köln"}, {}, {"deep": {"list": [1, {"a": "}"}], "quote": '"\\'}})
    said = written(name, Message("assistant", "", tool_calls=tuple(map(call, several))))
    _, calls = read(form.reader(["weather"]), pieces(said, cuts))
    assert [json.loads(told) for _, told in calls] == list(several)


@pytest.mark.parametrize("name", ["qwen", "react"])
@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 100), max_size=6))
def test_text_before_a_call_is_the_reply_s(name: str, cuts: list[int]) -> None:
    said = written(name, Message("assistant", "I look.", tool_calls=(call({"a": 1}),)))
    assert read(call_form(TEMPLATES[name]).reader(["weather"]), pieces(said, cuts)) == (
        "I look.",
        [("weather", '{"a": 1}')],
    )


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=25)
@given(text=st.text(max_size=20), cuts=st.lists(st.integers(0, 30), max_size=4))
def test_text_without_a_call_stays_as_it_is(name: str, text: str, cuts: list[int]) -> None:
    found, calls = read(call_form(TEMPLATES[name]).reader(["weather"]), pieces(text, cuts))
    assert calls == []
    assert found == (text.strip() if name == "react" else text)


@pytest.mark.parametrize(
    "text", ['<tool_call>\n{"na', '<tool_call>\n{"other": 1}\n</tool_call>', "<tool_call> none", "a <tool_", '{"a": 1}']
)
def test_what_only_begins_like_a_call_is_text(text: str) -> None:
    found, calls = read(call_form(TEMPLATES["qwen"]).reader(["weather"]), list(text))
    assert (found, calls) == (text, [])


def test_a_bare_object_is_a_call_of_a_known_tool_only() -> None:
    form = call_form(TEMPLATES["llama3"])
    assert read(form.reader(["other"]), ['{"name": "weather", "parameters": {}}'])[1] == []
    assert read(form.reader(["weather"]), ['{"name": "weather", "parameters": {}}'])[1] == [("weather", "{}")]


def test_a_call_that_is_cut_short_keeps_what_there_is() -> None:
    form = call_form(TEMPLATES["qwen"])
    assert read(form.reader([]), ['<tool_call>\n{"name": "weather", "arguments": {"city": "Kö']) == (
        "",
        [("weather", '{"city": "Kö')],
    )


def test_arguments_come_while_they_are_written() -> None:
    reader = call_form(TEMPLATES["qwen"]).reader(["weather"])
    assert reader.feed('<tool_call>\n{"name": "weather", "arguments": {"city"') == [
        Called(0, "weather"),
        Called(0, arguments='{"city"'),
    ]


def test_an_answer_in_react_is_what_follows_the_thought() -> None:
    reader = call_form(TEMPLATES["react"]).reader(["weather"])
    assert read(reader, ["Thought: I now know", " the final answer.\nFinal Ans", "wer: 21 degr", "ees."]) == (
        "21 degrees.",
        [],
    )


def test_forms_are_found_by_what_a_template_writes() -> None:
    qwen, mistral = call_form(TEMPLATES["qwen"]), call_form(TEMPLATES["mistral"])
    assert isinstance(qwen, JsonForm) and (qwen.mark, qwen.end_mark) == ("<tool_call>", "</tool_call>")
    assert isinstance(mistral, JsonForm) and (mistral.mark, mistral.end_mark) == ("[TOOL_CALLS]", "")
    assert isinstance(call_form(TEMPLATES["react"]), ReactForm)
    assert call_form(bind("vicuna", family("llama2"))) is None


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_forced_call_begins_as_the_template_writes_it(name: str) -> None:
    forced = call_form(TEMPLATES[name]).forced([TOOL])
    assert written(name, Message("assistant", "", tool_calls=(call({}),))).count(forced.begins) >= 1
    assert forced.grammar.startswith("start: ") and "weather" in forced.grammar
