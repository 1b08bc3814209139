"""Columns and speakers of other names, as LLaMA-Factory's dataset_info.json has them."""

from __future__ import annotations

import pytest

from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Origin
from lorikeet.data.formats.alpaca import Alpaca
from lorikeet.data.formats.auto import Auto
from lorikeet.data.formats.columns import Columns
from lorikeet.data.formats.messages import Messages
from lorikeet.data.formats.sharegpt import ShareGPT

AT = Origin("file.json", 7)


def test_alpaca_columns() -> None:
    format_ = Alpaca(prompt="P", query="Q", response="R", system="S", history="H", tools="T")
    row = {"P": "p", "Q": "q", "R": "r", "S": "s", "H": [["x", "y"]], "T": '[{"name": "f"}]', "input": "not this"}
    conversation = format_.read(row, AT)
    assert [message.content for message in conversation.messages] == ["s", "x", "y", "p\nq", "r"]
    assert conversation.tools[0]["function"]["name"] == "f"
    assert format_.recognises(row) and not Alpaca().recognises(row)


TAGS = {
    "role_tag": "who",
    "content_tag": "what",
    "user_tag": "Frage",
    "assistant_tag": "Antwort",
    "function_tag": "Ruf",
    "observation_tag": "Echo",
    "system_tag": "Regie",
}


def test_sharegpt_tags() -> None:
    told = [
        ("Regie", "s"),
        ("Frage", "q"),
        ("Ruf", '{"name": "f", "arguments": {}}'),
        ("Echo", "3"),
        ("Antwort", "a"),
        ("human", "the usual names hold too"),
        ("GPT", "b"),
    ]
    row = {"chat": [{"who": speaker, "what": words} for speaker, words in told]}
    conversation = ShareGPT(messages="chat", **TAGS).read(row, AT)
    roles = ["system", "user", "assistant", "tool", "assistant", "user", "assistant"]
    assert [message.role for message in conversation.messages] == roles
    assert conversation.messages[2].tool_calls[0]["function"]["name"] == "f"


def test_a_tag_may_turn_a_usual_name_around() -> None:
    row = {"conversations": [{"from": "assistant", "value": "q"}, {"from": "user", "value": "a"}]}
    conversation = ShareGPT(user_tag="assistant", assistant_tag="user").read(row, AT)
    assert [message.role for message in conversation.messages] == ["user", "assistant"]


def test_a_system_prompt_in_both_places_is_one() -> None:
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    row = {"conversations": turns, "Regie": "s"}
    assert [message.role for message in ShareGPT(system="Regie").read(row, AT).messages] == [
        "system",
        "user",
        "assistant",
    ]
    with pytest.raises(DataError, match="system turn stands behind the start"):
        ShareGPT(system="Regie").read({**row, "Regie": "another"}, AT)


def test_turns_say_how_they_are_learned() -> None:
    turns = [
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "a", "train": False},
        {"from": "human", "value": "r"},
        {"from": "gpt", "value": "b", "weight": 0.5},
    ]
    messages = ShareGPT().read({"conversations": turns}, AT).messages
    assert [message.trained for message in messages] == [None, False, None, None]
    assert messages[3].weight == 0.5


def test_messages_in_another_column() -> None:
    row = {
        "chat": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        "werkzeug": [{"name": "f"}],
    }
    assert len(Messages(messages="chat", tools="werkzeug").read(row, AT).tools) == 1


def test_auto_says_what_it_leaves_unread(capsys: pytest.CaptureFixture) -> None:
    row = {"instruction": "q", "output": "a", "input": "", "category": "x", "id": 3}
    Auto().settle([row], "f.json")
    assert "f.json: format alpaca (not read: category id)" in capsys.readouterr().err
    Auto().settle([{"instruction": "q", "output": "a"}], "f.json")
    assert "not read" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "role", "text"), [("messages", "role", "content"), ("conversations", "from", "value")]
)
def test_what_a_turn_says_in_keys_that_nothing_reads_is_said(
    column: str, role: str, text: str, capsys: pytest.CaptureFixture
) -> None:
    question = {role: "user", text: "q", "trained": None}
    answer = {role: "assistant", text: "a", "weight": 1, "reasoning_content": "because", "audio": None}
    Auto().settle([{column: [question, answer]}], "f.json")
    assert f"f.json: not read in '{column}': reasoning_content\n" in capsys.readouterr().err
    Auto().settle([{column: [question, {**answer, "reasoning_content": ""}]}], "f.json")
    assert "not read" not in capsys.readouterr().err


def test_columns_find_the_system_prompt(capsys: pytest.CaptureFixture) -> None:
    row = {"question": "q", "answer": "a", "system": "s"}
    format_ = Auto().settle([row], "f.json")
    assert isinstance(format_, Columns) and [m.content for m in format_.read(row, AT).messages] == ["s", "q", "a"]
    assert "system prompts from 'system'" in capsys.readouterr().err


BAD = {
    "wrong own column": (Alpaca(response="antwort"), {"instruction": "q", "antwrt": "a"}, ["'antwort'", "'antwrt'"]),
    "half a history": (
        Alpaca(history="H"),
        {"instruction": "q", "output": "a", "H": [["x", ""]]},
        ["H 0 (assistant)", "empty"],
    ),
    "a history of objects": (
        Alpaca(),
        {"instruction": "q", "output": "a", "history": [{"q": "x", "a": "y"}]},
        ["'history'", "list of pairs"],
    ),
    "unknown speaker": (
        ShareGPT(**TAGS),
        {"conversations": [{"who": "Fage", "what": "q"}]},
        ["turn 0", "'Fage'", "frage"],
    ),
    "no such key": (
        ShareGPT(role_tag="who"),
        {"conversations": [{"woh": "human", "value": "q"}]},
        ["'who'", "'woh'"],
    ),
    "two columns of tools": (Messages(tools="t"), {"messages": [], "t": []}, ["at least one"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows(case: str) -> None:
    format_, row, expected = BAD[case]
    with pytest.raises(DataError) as caught:
        format_.read(row, AT)
    assert all(part in str(caught.value) for part in ["file.json row 7", *expected]), str(caught.value)
