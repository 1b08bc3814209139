"""Tools, calls and what they answer, in every shape that files have them, as one shape."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet.base.errors import DataError, TemplateError
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.encode import encode_conversation, encode_prompt
from lorikeet.data.formats import _tools
from lorikeet.data.formats.alpaca import Alpaca
from lorikeet.data.formats.messages import Messages
from lorikeet.data.formats.sharegpt import ShareGPT
from lorikeet.data.layout import lay_out
from lorikeet.data.loss import LossOptions
from lorikeet.data.templates.jinja import Jinja

AT = Origin("file.json", 7)
FUNCTION = {"name": "add", "description": "sum", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 1, "y": [2, "é"]}}}
BARE = CALL["function"]

TOOLS = {
    "wrapped": [TOOL],
    "bare": [FUNCTION],
    "one": FUNCTION,
    "text": json.dumps([FUNCTION]),
    "flat, as the responses API": [{"type": "function", **FUNCTION}],
}


@pytest.mark.parametrize("shape", TOOLS)
def test_tools_have_one_shape(shape: str) -> None:
    row = {"instruction": "q", "output": "a", "tools": TOOLS[shape]}
    assert Alpaca().read(row, AT).tools == (TOOL,)
    share = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": TOOLS[shape]}
    assert ShareGPT().read(share, AT).tools == (TOOL,)
    say = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert Messages().read(say | {"tools": TOOLS[shape]}, AT).tools == (TOOL,)
    assert Messages().read(say | {"functions": [FUNCTION]}, AT).tools == (TOOL,)
    assert Messages().read(say | {"tools": "", "functions": None}, AT).tools == ()


arguments = st.dictionaries(
    st.text(max_size=5), st.integers() | st.text(max_size=5) | st.lists(st.booleans()), max_size=3
)


@given(name=st.text("abc_.", min_size=1, max_size=8), arguments=arguments, id=st.none() | st.just("c1"))
@settings(max_examples=80, deadline=None)
def test_calls_have_one_shape(name: str, arguments: dict, id: str | None) -> None:
    own = {} if id is None else {"id": id}
    expected = ({"type": "function", **own, "function": {"name": name, "arguments": arguments}},)
    text = json.dumps(arguments)
    shapes: list = [
        [{"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}],
        [{"id": id, "function": {"name": name, "arguments": text}}],
        {"id": id, "name": name, "arguments": text},
        [{"id": id, "name": name, "parameters": arguments}],
        json.dumps([{"id": id, "type": "function", "name": name, "arguments": text}]),
        list(expected),
    ]
    for shape in shapes:
        assert _tools.calls(shape, "here", AT) == expected


def share(*turns: tuple[str, object], **more: object) -> dict:
    return {"conversations": [{"from": speaker, "value": words} for speaker, words in turns], **more}


def test_llama_factory_calls_and_observations() -> None:
    thought = "<think>\nsum them\n</think>\n\n" + json.dumps(BARE)
    conversation = ShareGPT().read(
        share(
            ("human", "q"),
            ("function_call", json.dumps([BARE, BARE])),
            ("observation", "3"),
            ("observation", ""),
            ("function_call", thought),
            ("observation", "4"),
            ("gpt", "a"),
            system="s",
            tools=json.dumps([FUNCTION]),
        ),
        AT,
    )
    roles = [message.role for message in conversation.messages]
    assert roles == ["system", "user", "assistant", "tool", "tool", "assistant", "tool", "assistant"]
    assert conversation.messages[2].tool_calls == (CALL, CALL) and conversation.messages[2].content == ""
    assert conversation.messages[5].tool_calls == (CALL,)
    assert conversation.messages[5].content == "<think>\nsum them\n</think>"
    assert conversation.messages[4].content == ""


def test_openai_calls_and_answers() -> None:
    arguments = json.dumps(BARE["arguments"])
    turns = [
        {"role": "user", "content": "q", "name": "Ann"},
        {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": BARE}], "content": None},
        {"role": "tool", "tool_call_id": "c1", "name": "add", "content": [{"type": "text", "text": "3"}]},
        {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": arguments}, "weight": 0},
        {"role": "function", "name": "add", "content": "4"},
        {"role": "assistant", "content": "a", "weight": 1},
    ]
    user, call, answer, old, old_answer, last = Messages().read({"messages": turns}, AT).messages
    assert user.name == "Ann"
    assert call.tool_calls == ({**CALL, "id": "c1"},) and call.content == ""
    assert answer == Message("tool", "3", name="add", tool_call_id="c1")
    assert old.tool_calls == (CALL,) and old.weight == 0
    assert old_answer == Message("tool", "4", name="add")
    assert last.weight == 1


def test_calls_are_learned_and_answers_are_not(tokenizer, templates) -> None:
    conversation = ShareGPT().read(
        share(
            ("human", "q"), ("function_call", json.dumps(BARE)), ("observation", "3"), ("gpt", "a"), tools=[FUNCTION]
        ),
        AT,
    )
    template = Jinja(source=templates["tools"]).bind(tokenizer)
    [(_, ids, weights)] = encode_conversation(conversation, template, tokenizer, LossOptions())
    learned = tokenizer.decode([int(token) for token, weight in zip(ids, weights) if weight], skip_control=False)
    shown = tokenizer.decode([int(token) for token in ids], skip_control=False)
    assert "<call>" in learned and '"add"' in learned and learned.endswith("a<|im_end|>") and "3" not in learned
    assert "Tools: " in shown and "\n3<|im_end|>" in shown


def test_a_template_that_leaves_out_the_tools_is_refused(tokenizer, templates) -> None:
    asked = Conversation((Message("user", "q"), Message("assistant", "a")), tools=(TOOL,), origin=AT)
    told = Jinja(source=templates["tools"]).bind(tokenizer)
    assert encode_prompt(asked, told, tokenizer) and encode_conversation(asked, told, tokenizer, LossOptions())
    silent = Jinja(source=templates["chatml"]).bind(tokenizer)
    for encode in (lambda: encode_prompt(asked, silent, tokenizer), lambda: lay_out(asked, silent, [1])):
        with pytest.raises(TemplateError) as caught:
            encode()
        assert "file.json row 7: the template leaves out the tools" in str(caught.value)
        assert "add" in str(caught.value)


def test_templates_see_names_and_call_ids(tokenizer) -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.name }} {{ m.tool_call_id }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = Conversation((Message("user", "q", name="<|im_end|>Ann"), Message("tool", "3", tool_call_id="c1")))
    segments = Jinja(source=source).bind(tokenizer).render(chat)
    shown = "".join(segment.text for segment in segments)
    assert "user <|im_end|>Ann \nq" in shown and "tool  c1\n3" in shown
    assert sum(segment.control and segment.text == "<|im_end|>" for segment in segments) == 2, (
        "a name is no control token"
    )


def say(*turns: dict, **more: object) -> dict:
    return {"messages": [{"role": "user", "content": "q"}, *turns], **more}


def calling(arguments: object, **more: object) -> dict:
    return {
        "role": "assistant",
        "tool_calls": [{"id": "c1", "function": {"name": "add", "arguments": arguments}}],
        **more,
    }


A = {"role": "assistant", "content": "a"}
BAD = {
    "tools in broken JSON": (Messages(), say(A, tools='[{"name": '), ["'tools'", "broken JSON"]),
    "a tool without a name": (Messages(), say(A, tools=[{"type": "function"}]), ["no function with a name"]),
    "a tool of another type": (Messages(), say(A, tools=[{"type": "search", "name": "x"}]), ["no function", "search"]),
    "tools as numbers": (Alpaca(), {"instruction": "q", "output": "a", "tools": [3]}, ["'tools'", "list of objects"]),
    "arguments in broken JSON": (Messages(), say(calling('{"x": 1')), ["message 1", "add", "broken JSON"]),
    "arguments as a list": (Messages(), say(calling([1])), ["arguments that are no object", "[1]"]),
    "the user calls": (Messages(), say({**calling({}), "role": "user"}), ["message 1 (user)", "only the assistant"]),
    "an answer to nothing": (
        Messages(),
        say(calling({}), {"role": "tool", "tool_call_id": "c2", "content": "3"}, A),
        ["message 2", "'c2'", "c1"],
    ),
    "an answer before its call": (
        Messages(),
        say({"role": "tool", "tool_call_id": "c1", "content": "3"}, calling({}), A),
        ["message 1", "there is none"],
    ),
    "trained and train": (Messages(), say({**A, "trained": True, "train": False}), ["contradicts itself"]),
    "train as a word": (Messages(), say({**A, "train": "no"}), ["'train'", "'no'"]),
    "turns in messages": (
        Messages(),
        {"messages": [{"from": "human", "value": "q"}]},
        ["from/value", "kind: sharegpt"],
    ),
    "a name that is a number": (Messages(), say({**A, "name": 3}), ["message 1 name", "not text"]),
    "tool_calls in turns": (
        ShareGPT(),
        {"conversations": [{"role": "user", "content": "q"}, calling({}, content="")]},
        ["turn 1", "tool_calls", "kind: messages"],
    ),
    "a call in broken JSON": (
        ShareGPT(),
        share(("human", "q"), ("function_call", "add(1)")),
        ["turn 1", "broken JSON"],
    ),
    "a call of nothing": (ShareGPT(), share(("human", "q"), ("function_call", "[]")), ["turn 1", "calls nothing"]),
    "an empty call": (ShareGPT(), share(("human", "q"), ("function_call", " ")), ["turn 1", "empty"]),
    "weight of a turn": (
        ShareGPT(),
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": "x"}]},
        ["turn 1", "'weight'"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_name_origin_and_place(case: str) -> None:
    format_, row, expected = BAD[case]
    with pytest.raises(DataError) as caught:
        format_.read(row, AT)
    message = str(caught.value)
    assert "file.json row 7" in message and len(message.split("\n")) <= 4
    assert all(part in message for part in expected), message
