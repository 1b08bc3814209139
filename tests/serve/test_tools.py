"""Calls of tools through OpenAI's client: forced, read from what a model says, streamed, and as old functions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from lorikeet import api
from lorikeet.data.templates._calls import call_form
from lorikeet.data.templates.react import React
from lorikeet.infer.engine import Engine
from lorikeet.infer.reply import Event
from lorikeet.serve import replying
from lorikeet.serve.asking import Asked
from serve.conftest import Running, running

ASK: Any = [{"role": "user", "content": "Is it warm in Paris?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": CITY}}
TIME: Any = {"type": "function", "function": {"name": "time", "parameters": {**CITY, "required": ["city"]}}}
TOLD: Any = {"model": "tiny", "messages": ASK, "max_tokens": 120, "temperature": 1, "seed": 5}


def is_call(name: str, arguments: str) -> bool:
    value = json.loads(arguments)
    return name in ("weather", "time") and value["city"] in ("Paris", "Rome")


def test_a_required_tool_is_called(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(**TOLD, tools=[WEATHER, TIME], tool_choice="required").choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert (
        call.type == "function" and call.id.startswith("call_") and is_call(call.function.name, call.function.arguments)
    )


def test_a_named_tool_is_called_and_streams(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "time"}}
    told = {**TOLD, "tools": [WEATHER, TIME], "tool_choice": named}
    (call,) = client.chat.completions.create(**told).choices[0].message.tool_calls
    assert call.function.name == "time"
    names, arguments, pieces, reason = "", "", 0, None
    for piece in client.chat.completions.create(**told, stream=True):
        choice = piece.choices[0]
        reason = choice.finish_reason or reason
        for delta in choice.delta.tool_calls or []:
            names += delta.function.name or ""
            arguments += delta.function.arguments or ""
            pieces += 1
            assert delta.index == 0
        assert not choice.delta.content
    assert (names, arguments, reason) == ("time", call.function.arguments, "tool_calls")
    assert pieces > 3, "arguments come while they are written"


def test_openai_s_own_helper_puts_a_stream_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**TOLD, tools=[WEATHER], tool_choice="required") as stream:
        for _ in stream:
            pass
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert is_call(call.function.name, call.function.arguments)


def test_what_the_tools_say_goes_back(client: openai.OpenAI) -> None:
    call = client.chat.completions.create(**TOLD, tools=[WEATHER], tool_choice="required").choices[0].message
    talk = [*ASK, call, {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "21 degrees"}]
    told = {**TOLD, "messages": talk, "max_tokens": 4, "temperature": 0}
    after = client.chat.completions.create(**told, tools=[WEATHER])
    assert after.choices[0].message.role == "assistant"
    without = client.chat.completions.create(**{**told, "messages": ASK})
    assert after.usage.prompt_tokens > without.usage.prompt_tokens


def test_tools_are_shown_unless_none_may_be_called(client: openai.OpenAI) -> None:
    told = {**TOLD, "max_tokens": 4}
    shown = client.chat.completions.create(**told, tools=[WEATHER])
    hidden = client.chat.completions.create(**told, tools=[WEATHER], tool_choice="none")
    plain = client.chat.completions.create(**told)
    assert shown.usage.prompt_tokens > hidden.usage.prompt_tokens == plain.usage.prompt_tokens
    assert hidden.choices[0].message.tool_calls is None


@pytest.mark.parametrize(
    "more, said",
    [
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "not among the tools"),
        ({"tools": [WEATHER], "guided_regex": "a"}, "go with response_format"),
        (
            {"tools": [WEATHER], "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 1}}}},
            "guide",
        ),
        ({"tools": [WEATHER], "functions": [{"name": "f"}]}, "exclude each other"),
        ({"tools": [{"type": "function", "function": {"description": "nameless"}}]}, "no name"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]}, "assistant"),
    ],
)
def test_what_makes_no_sense_is_refused(served: Running, more: dict[str, Any], said: str) -> None:
    with served.http() as http:
        found = http.post("/v1/chat/completions", json=TOLD | more)
    assert found.status_code == 400 and said in found.json()["error"]["message"]


ANSWER: Any = {"type": "object", "properties": {"warm": {"type": "boolean"}}, "required": ["warm"]}
ANSWER["additionalProperties"] = False
FORM: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER, "strict": True}}


@pytest.mark.parametrize("begins, calls", [("<", True), ("{", False)])
def test_beside_a_form_of_the_reply_tools_may_be_called(
    client: openai.OpenAI, served: Running, begins: str, calls: bool
) -> None:
    (token,) = served.service.engine.tokenizer.encode(begins)[0]
    told = {
        **TOLD,
        "tools": [WEATHER, TIME],
        "response_format": FORM,
        "logit_bias": {str(token): 100},
        "max_tokens": 600,
    }
    (choice,) = client.chat.completions.create(**told).choices
    said, arguments, reason = "", "", None
    for piece in client.chat.completions.create(**told, stream=True):
        delta, reason = piece.choices[0].delta, piece.choices[0].finish_reason or reason
        said += delta.content or ""
        arguments += "".join(call.function.arguments or "" for call in delta.tool_calls or [])
    if calls:
        (call,) = choice.message.tool_calls
        assert is_call(call.function.name, call.function.arguments) and choice.message.content is None
        assert (said, arguments, reason) == ("", call.function.arguments, "tool_calls")
    else:
        assert isinstance(json.loads(choice.message.content)["warm"], bool) and choice.message.tool_calls is None
        assert (said, arguments, reason) == (choice.message.content, "", "stop")


def test_what_tool_choice_says_goes_before_the_form(client: openai.OpenAI) -> None:
    told = {**TOLD, "tools": [WEATHER], "response_format": {"type": "json_object"}}
    assert client.chat.completions.create(**told, tool_choice="required").choices[0].message.tool_calls
    (choice,) = client.chat.completions.create(**{**told, "response_format": FORM}, tool_choice="none").choices
    assert isinstance(json.loads(choice.message.content)["warm"], bool)


def test_old_functions_answer_in_their_own_shape(client: openai.OpenAI) -> None:
    function = WEATHER["function"]
    told = {**TOLD, "functions": [function], "function_call": {"name": "weather"}}
    (choice,) = client.chat.completions.create(**told).choices
    assert choice.finish_reason == "function_call" and choice.message.tool_calls is None
    assert is_call(choice.message.function_call.name, choice.message.function_call.arguments)
    pieces = [piece.choices[0].delta.function_call for piece in client.chat.completions.create(**told, stream=True)]
    said = "".join(piece.arguments or "" for piece in pieces if piece is not None)
    assert said == choice.message.function_call.arguments


# ----------------------------------------------------------------------- what a model says by itself, event by event


def asked(engine: Any, **more: Any) -> Asked:
    form = call_form(engine.template)
    assert form is not None
    made = Asked("chatcmpl-1", "tiny", [], [form.reader(["weather", "time"])])
    for name, value in more.items():
        setattr(made, name, value)
    return made


def heard(one: Asked, texts: list[str], reason: Any = "stop") -> tuple[replying.Choice, list[dict[str, Any]]]:
    (choice,) = replying.choices(one)
    pieces: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        last = number == len(texts) - 1
        event = Event(("chatcmpl-1", 0), text, reason if last else None, number + 1)
        pieces += replying.chat_pieces(one, choice, event, first=number == 0)
    return choice, pieces


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def test_text_and_two_calls(tool_engine: Any) -> None:
    choice, pieces = heard(asked(tool_engine), list("I look." + CALL + CALL))
    message = choice.message()
    assert message["content"] == "I look." and choice.finish == "tool_calls"
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == ['{"city": "Rome"}'] * 2
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    assert "".join(delta.get("content") or "" for delta in deltas) == "I look."
    begun = [call for delta in deltas for call in delta.get("tool_calls", []) if "id" in call]
    assert [call["index"] for call in begun] == [0, 1]


def test_one_call_only_where_parallel_calls_are_off(tool_engine: Any) -> None:
    choice, _ = heard(asked(tool_engine, one_call=True), [CALL, CALL], "cancelled")
    assert choice.full and len(choice.calls) == 1 and choice.finish == "tool_calls"


def test_a_call_that_is_cut_by_the_limit(tool_engine: Any) -> None:
    choice, _ = heard(asked(tool_engine), [CALL[:-20]], "length")
    assert choice.finish == "length" and choice.calls[0]["name"] == "weather"


def test_a_reply_that_the_server_ends_is_no_reply(tool_engine: Any) -> None:
    with pytest.raises(Exception, match="before the reply was whole"):
        heard(asked(tool_engine), ["I lo"], "cancelled")


# -------------------------------------------------------------------------------------------------------------- ReAct


@pytest.fixture(scope="module")
def react(tool_model: Path) -> Iterator[Running]:
    engine = api.engine(tool_model, {"dtype": "float32"})
    template = React.model_validate({}).bind(engine.tokenizer)
    with running(Engine(engine.model, engine.tokenizer, template)) as found:
        yield found


QWEN: Any = {
    "name_for_human": "Weather API",
    "name_for_model": "weather",
    "description_for_model": "The weather of a city.",
    "parameters": CITY,
}


def test_react_functions(react: Running) -> None:
    told = {**TOLD, "functions": [QWEN], "function_call": {"name": "weather"}, "max_tokens": 900}
    with react.http() as http:
        found = http.post("/v1/chat/completions", json=told).json()
    (choice,) = found["choices"]
    assert choice["finish_reason"] in ("function_call", "length"), found
    assert choice["message"]["function_call"]["name"] == "weather"
    if choice["finish_reason"] == "function_call":
        assert is_call("weather", choice["message"]["function_call"]["arguments"])
    talk = [*ASK, choice["message"], {"role": "function", "name": "weather", "content": "21 degrees"}]
    with react.http() as http:
        after = http.post(
            "/v1/chat/completions", json=told | {"messages": talk, "function_call": "auto", "max_tokens": 3}
        )
    assert after.status_code == 200, after.text
    assert after.json()["usage"]["prompt_tokens"] > found["usage"]["prompt_tokens"]


def test_react_reads_thoughts_actions_and_answers(react: Running) -> None:
    engine = react.service.engine
    acted = 'Thought: I look.\nAction: weather\nAction Input: {"city": "Rome"}'
    choice, _ = heard(asked(engine, old_calls=True, one_call=True), list(acted))
    assert choice.message()["function_call"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert choice.message()["content"] == "I look." and choice.finish == "function_call"
    choice, _ = heard(asked(engine), list("Thought: I now know the final answer.\nFinal Answer: warm"))
    assert choice.message()["content"] == "warm" and choice.finish == "stop"
