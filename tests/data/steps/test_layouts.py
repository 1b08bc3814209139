"""Rows in another layout, and rows whose columns get in each other's way: nothing is replaced, or lost, in silence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from data.steps.conftest import record, run
from lorikeet.base.nouns import Origin
from lorikeet.data.formats._contract import Format
from lorikeet.data.formats.alpaca import Alpaca
from lorikeet.data.formats.messages import Messages
from lorikeet.data.formats.preference import Preference
from lorikeet.data.formats.prompt_completion import PromptCompletion
from lorikeet.data.formats.sharegpt import ShareGPT
from lorikeet.data.steps import _read
from lorikeet.data.steps._contract import Log
from lorikeet.data.steps._record import Record

CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"n": 2}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def read(row: dict[str, Any], format: Format) -> Record:
    """The row as cleaning reads it."""
    log = Log(_read.STEP)
    (found,) = _read.records([(row, "a.json", 0, 1)], format.settle([row], "a.json"), log)
    return found


def talk(*said: tuple[str, Any], **rest: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in said], **rest}


def test_a_column_of_the_name_the_turns_get_does_not_take_their_place() -> None:
    given = record("q", "<b>a</b>")
    given.rest |= {"messages": [{"role": "user", "content": "old"}]}
    ((kept,), log) = run("to_messages", given)
    assert [turn["content"] for turn in kept.as_row()["messages"]] == ["q", "<b>a</b>"]
    (entry,) = log.entries
    assert json.loads(entry["cut"]) == {"messages": [{"role": "user", "content": "old"}]}, "it is on the record"

    given = read(
        talk(("user", "q"), ("assistant", "a"), conversations=[{"from": "human"}], system="unread"), Messages()
    )
    ((kept,), log) = run("to_sharegpt", given)
    row = kept.as_row()
    assert [turn["value"] for turn in row["conversations"]] == ["q", "a"] and "system" not in row
    assert len(log.entries) == 2


def test_columns_of_alpaca_s_names_do_not_take_the_turns_place() -> None:
    given = record("q", "a", instruction="old", output="older", input="", history=None)
    ((kept,), log) = run("to_alpaca", given)
    assert kept.as_row() == {"instruction": "q", "input": "", "output": "a", "history": None}
    assert [json.loads(entry["cut"]) for entry in log.entries] == [{"instruction": "old"}, {"output": "older"}]


def test_an_alpaca_row_without_an_answer_stays_one() -> None:
    row = {"instruction": "Add", "input": "1 and 2", "output": ""}
    ((kept,), _) = run("dedupe", read(row, Alpaca()))
    assert kept.as_row() == row


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"prompt": "q", "completion": "a", "tools": TOOLS}, PromptCompletion()),
        ({**talk(("user", "q")), "chosen": "a", "rejected": "b", "tools": json.dumps(TOOLS)}, Preference()),
    ],
)
def test_a_row_keeps_its_tools(row: dict[str, Any], format: Format) -> None:
    assert read(row, format).as_row()["tools"] == TOOLS


def test_names_of_speakers_that_the_format_gives_are_known() -> None:
    row = {"conversations": [{"from": "Q", "value": "q"}, {"from": "A", "value": "a"}]}
    ((kept,), _) = run("roles", read(row, ShareGPT(user_tag="q", assistant_tag="A")))
    assert [turn["from"] for turn in kept.as_row()["conversations"]] == ["human", "gpt"]


def test_older_calls_are_calls() -> None:
    calls = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"n": 2}'}}
    row = talk(("user", "q"))
    row["messages"] += [calls, {"role": "function", "content": "3"}, {"role": "assistant", "content": "Three."}]
    ((kept,), _) = run("roles", read(row, Messages()))
    assert len(kept.turns) == 4
    ((written,), _) = run("to_sharegpt", kept)
    turn = written.as_row()["conversations"][1]
    assert turn["from"] == "function_call" and json.loads(turn["value"]) == [{"name": "add", "arguments": {"n": 2}}]
    assert len(ShareGPT().read(written.as_row(), Origin("a", 0)).messages) == 4


def test_a_row_that_ends_with_a_call_stays() -> None:
    call = '[{"name": "f", "arguments": {}}]'
    ((kept,), log) = run("roles", record("human: q", f"function_call: {call}"))
    assert len(kept.turns) == 2 and not log.entries
    ((kept,), _) = run("roles", record("human: q", f"function_call: {call}", "observation: 1"))
    assert [turn.speaker for turn in kept.turns] == ["human", "function_call"]


NO_CALLS = {"a word": "add", "numbers": [1], "no name": [{"function": {}}]}


@pytest.mark.parametrize("case", NO_CALLS)
def test_calls_that_are_none_are_a_named_reject(case: str) -> None:
    row = talk(("user", "q"), ("assistant", "x"))
    row["messages"][1]["tool_calls"] = NO_CALLS[case]
    kept, log = run("to_sharegpt", read(row, Messages()))
    assert not kept and log.dropped == {"cannot be worked on": 1}


def test_what_sharegpt_cannot_say_is_no_row_of_it() -> None:
    row = talk(("user", "q"), ("assistant", "Let me see."), ("tool", "3"), ("assistant", "Three."))
    row["messages"][1]["tool_calls"] = [CALL]
    kept, log = run("to_sharegpt", read(row, Messages()))
    assert not kept and log.dropped == {"a turn speaks and calls a tool, which ShareGPT's cannot": 1}
    row["messages"][1]["content"] = "<think>Let me see.</think>"
    ((kept_row,), _) = run("to_sharegpt", read(row, Messages()))
    assert ShareGPT().read(kept_row.as_row(), Origin("a", 0)).messages[1].tool_calls
    document = Record(Origin("a", 0), [], {}, "text", "text", ("role", "content"))
    document.turns = [type(record("x").turns[0])("text", "a document")]
    kept, log = run("to_sharegpt", document)
    assert not kept and log.dropped == {"a text, which nobody says": 1}


def test_turns_of_role_and_content_become_from_and_value() -> None:
    row = {"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    ((kept,), _) = run("to_sharegpt", read(row, ShareGPT()))
    assert kept.as_row()["conversations"] == [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def test_a_reply_that_is_not_to_be_learned_is_not_written_where_it_would_be() -> None:
    row = talk(("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))
    row["messages"][1]["trained"] = False
    kept, log = run("to_alpaca", read(row, Messages()))
    assert not kept and log.dropped == {"a turn says how it is learned, which columns cannot": 1}
    row["messages"][1]["trained"], row["messages"][0]["weight"] = True, 0
    assert run("to_alpaca", read(row, Messages()))[0], "what it says goes without saying"


def test_a_tool_that_answers_nothing_is_read_as_training_reads_it() -> None:
    row = talk(("user", "q"), ("assistant", None), ("tool", None), ("assistant", "Done."))
    row["messages"][1]["tool_calls"] = [CALL]
    assert Messages().read(row, Origin("a", 0)).messages[2].content == ""
    ((kept,), _) = run("roles", read(row, Messages()))
    assert [turn.content for turn in kept.turns] == ["q", "", "", "Done."]
