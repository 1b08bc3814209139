from __future__ import annotations

import pytest

from lorikeet.base.errors import DataError
from lorikeet.base.kinds import kind_class
from lorikeet.base.nouns import Origin
from lorikeet.data.formats._contract import Format
from lorikeet.data.formats.auto import Auto

AT = Origin("file.json", 7)
PACKAGE = "lorikeet.data.formats"


def read(kind: str, row: dict, *, reply: bool = True, **options: str):
    conversation = kind_class(PACKAGE, Format, kind)(**options).read(row, AT, reply=reply)
    assert conversation.origin == AT
    return conversation


def turns(kind: str, row: dict, **options) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in read(kind, row, **options).messages]


U, A = ("user", "q"), ("assistant", "a")
GOOD = {
    "alpaca": ({"instruction": "q", "output": "a"}, [U, A]),
    "alpaca with input": ({"instruction": "q", "input": "i", "output": "a"}, [("user", "q\ni"), A]),
    "alpaca with all": (
        {"instruction": "q", "input": None, "output": "a", "system": "s", "history": [["x", "y"]], "id": 3},
        [("system", "s"), ("user", "x"), ("assistant", "y"), U, A],
    ),
    "sharegpt": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [U, A]),
    "sharegpt by role": (
        {"conversations": [{"role": "User", "content": "q"}, {"role": "bard", "content": "a"}], "system": "s"},
        [("system", "s"), U, A],
    ),
    "messages": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": "a"},
            ]
        },
        [U, A],
    ),
    "messages, two questions": (
        {"messages": [{"role": "user", "content": "q"}] * 2 + [{"role": "assistant", "content": "a"}]},
        [U, U, A],
    ),
    "columns": ({"question": "q", "answer": "a"}, [U, A]),
    "columns, prompt": ({"prompt": "q", "response": "a", "extra": 1}, [U, A]),
    "columns, input": ({"input": "q", "output": "a"}, [U, A]),
    "text": ({"text": "hello"}, [("text", "hello")]),
}


@pytest.mark.parametrize("case", GOOD)
def test_rows_read_and_are_detected(case: str, capsys: pytest.CaptureFixture) -> None:
    row, expected = GOOD[case]
    kind = case.split()[0].strip(",")
    assert turns(kind, row) == expected
    settled = Auto().settle([row], "file.json")
    assert settled.model_dump()["kind"] == kind
    assert f"file.json: format {kind}" in capsys.readouterr().err
    assert [(message.role, message.content) for message in settled.read(row, AT).messages] == expected


def test_columns_say_which_were_found(capsys: pytest.CaptureFixture) -> None:
    Auto().settle([{"question": "q", "answer": "a"}], "f.csv")
    assert "'question'" in capsys.readouterr().err
    row = {"frage": "q", "antwort": "a", "rolle": "s"}
    assert turns("columns", row, prompt="frage", response="antwort", system="rolle") == [("system", "s"), U, A]


def test_messages_keep_tools_training_and_weights() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    row = {
        "messages": [
            {"role": "developer", "content": "s", "weight": 0.5},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": ""},
            {"role": "assistant", "content": "a", "trained": False, "weight": 0},
        ],
        "tools": '[{"name": "f"}]',
    }
    conversation = read("messages", row)
    system, _, calling, tool, last = conversation.messages
    assert (system.role, system.weight) == ("system", 0.5)
    assert calling.tool_calls == (call,) and calling.content == ""
    assert tool.content == "" and last.trained is False and last.weight == 0
    assert conversation.tools == ({"type": "function", "function": {"name": "f"}},)


def test_prompts_without_answers_for_predict() -> None:
    assert turns("alpaca", {"instruction": "q"}, reply=False) == [U]
    assert turns("alpaca", {"instruction": "q", "output": "a"}, reply=False) == [U, A]
    assert turns("sharegpt", {"conversations": [{"from": "human", "value": "q"}]}, reply=False) == [U]
    assert turns("messages", {"messages": [{"role": "user", "content": "q"}]}, reply=False) == [U]
    assert turns("columns", {"prompt": "q"}, reply=False) == [U]
    for row in ({"instruction": "q"}, {"prompt": "q"}):
        assert Auto().settle([row], "f").read(row, AT, reply=False).messages[0].content == "q"


def share(*pairs: tuple[str, object]) -> dict:
    return {"conversations": [{"from": speaker, "value": words} for speaker, words in pairs]}


def say(*pairs: tuple[str, object], **more: object) -> dict:
    return {"messages": [{"role": role, "content": words, **more} for role, words in pairs]}


BAD = {
    "alpaca wrong column": ("alpaca", {"instructions": "q", "output": "a"}, ["'instruction'", "instructions output"]),
    "alpaca no output": ("alpaca", {"instruction": "q", "outptu": "a"}, ["'output'", "'outptu'"]),
    "alpaca null reply": ("alpaca", {"instruction": "q", "output": None}, ["'output'", "null"]),
    "alpaca empty reply": ("alpaca", {"instruction": "q", "output": " \n"}, ["'output' is empty"]),
    "alpaca number": ("alpaca", {"instruction": "q", "output": 5}, ["'output' is not text", "int: 5"]),
    "alpaca empty question": ("alpaca", {"instruction": "", "input": "", "output": "a"}, ["'instruction' is empty"]),
    "alpaca history": ("alpaca", {"instruction": "q", "output": "a", "history": [["x"]]}, ["list of pairs"]),
    "alpaca half a character": ("alpaca", {"instruction": "q", "output": "a\ud83d"}, ["\\ud83d", "character 1"]),
    "sharegpt odd role": ("sharegpt", share(("human", "q"), ("gtp", "a")), ["turn 1", "'gtp'", "gpt"]),
    "sharegpt starts with gpt": ("sharegpt", share(("gpt", "a"), ("human", "q")), ["first turn"]),
    "sharegpt two in a row": ("sharegpt", share(("human", "q"), ("human", "r"), ("gpt", "a")), ["in a row"]),
    "sharegpt late system": ("sharegpt", share(("human", "q"), ("gpt", "a"), ("system", "s")), ["behind the start"]),
    "sharegpt no reply": ("sharegpt", share(("human", "q")), ["no assistant message"]),
    "sharegpt empty": ("sharegpt", {"conversations": []}, ["at least one"]),
    "sharegpt no list": ("sharegpt", {"conversations": "hello"}, ["must be a list"]),
    "sharegpt null": ("sharegpt", share(("human", "q"), ("gpt", None)), ["turn 1", "null"]),
    "sharegpt no value": ("sharegpt", {"conversations": [{"from": "human"}]}, ["'value'"]),
    "sharegpt preference": ("sharegpt", {**share(("human", "q")), "chosen": 1, "rejected": 2}, ["preference"]),
    "messages odd role": ("messages", say(("user", "q"), ("asistant", "a")), ["message 1", "assistant"]),
    "messages no reply": ("messages", say(("user", "q"), ("system", "a")), ["no assistant message", "user system"]),
    "messages empty reply": ("messages", say(("user", "q"), ("assistant", "")), ["message 1 is empty"]),
    "messages no content": ("messages", {"messages": [{"role": "user"}]}, ["'content'"]),
    "messages no role": ("messages", {"messages": [{"content": "x"}]}, ["'role'"]),
    "messages image": ("messages", say(("user", [{"type": "image_url"}]), ("assistant", "a")), ["not text"]),
    "messages weight": ("messages", say(("user", "q"), ("assistant", "a"), weight=-1), ["'weight'", "-1"]),
    "messages trained": ("messages", say(("user", "q"), ("assistant", "a"), trained="yes"), ["'trained'", "'yes'"]),
    "messages tools": ("messages", {**say(("user", "q"), ("assistant", "a")), "tools": "[{"}, ["tools", "broken JSON"]),
    "columns unknown": ("columns", {"x": "q", "y": "a"}, ["columns x y", "prompt: NAME"]),
    "columns no answer": ("columns", {"question": "q"}, ["cannot tell"]),
    "columns empty": ("columns", {"question": "q", "answer": ""}, ["'answer' is empty"]),
    "text wrong": ("text", {"txt": "x"}, ["'text'", "'txt'"]),
    "text empty": ("text", {"text": " "}, ["is empty"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_name_origin_and_column(case: str) -> None:
    kind, row, expected = BAD[case]
    with pytest.raises(DataError) as caught:
        read(kind, row)
    message = str(caught.value)
    assert "file.json row 7" in message
    assert all(part in message for part in expected), message
    assert len(message.split("\n")) <= 4


def test_unknown_columns_are_answered_with_all_formats() -> None:
    with pytest.raises(DataError) as caught:
        Auto().settle([{"promt": "q", "y": "a"}], "f.json")
    assert "columns promt y" in str(caught.value) and "'promt' to 'prompt'" in str(caught.value)
