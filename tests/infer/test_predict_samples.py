"""Files of replies: whole or not there, gone on with where they stopped; and the report's samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infer.conftest import END, ids
from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Conversation, Example, Message
from lorikeet.data import layout
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.predict import predict
from lorikeet.infer.samples import prompt_and_reply, read_samples, write_samples
from lorikeet.infer.sampling import GenerateOptions

OPTIONS = GenerateOptions(max_new_tokens=9, batch_size=2)


def asked(count: int = 5, word: str = "question") -> list[Conversation]:
    return [
        Conversation((Message("user", f"{word} {i}"), *([Message("assistant", f"answer {i}")] if i % 2 else [])))
        for i in range(count)
    ]


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def test_replies_stand_in_the_order_of_the_prompts_with_their_references(echo: Engine, tmp_path: Path) -> None:
    found = predict(echo, asked(), tmp_path / "new" / "out.jsonl", OPTIONS)
    assert rows(tmp_path / "new" / "out.jsonl") == found
    assert [row["reference"] for row in found] == [None, "answer 1", None, "answer 3", None]
    assert [row["messages"] for row in found] == [[{"role": "user", "content": f"question {i}"}] for i in range(5)]
    assert {row["reply"] for row in found} == {"user: que"} and found[0]["finish_reason"] == "length"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.jsonl"]


class Stopped(Exception):
    pass


def stop_after(engine: Engine, replies: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The engine breaks off after some replies; returns how many prompts each call was given."""
    whole, asked_for = Engine.generate, []

    def some(self: Engine, requests: Sequence[Request]):
        asked_for.append(len(requests))
        ended = 0
        for event in whole(self, requests):
            if len(asked_for) == 1 and ended == replies:
                raise Stopped
            ended += event.reason is not None
            yield event

    monkeypatch.setattr(Engine, "generate", some)
    return asked_for


@pytest.mark.parametrize("cut", [False, True])
def test_an_interrupted_run_goes_on_where_it_stopped(
    echo: Engine, cut: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    expected = predict(echo, asked(), tmp_path / "whole.jsonl", OPTIONS)
    calls = stop_after(echo, 3, monkeypatch)
    with pytest.raises(Stopped):
        predict(echo, asked(), output, OPTIONS)
    assert part.exists() and not output.exists()
    if cut:
        part.write_text(part.read_text()[:-9])  # a crash in the middle of the third row
    assert predict(echo, asked(), output, OPTIONS) == expected == rows(output)
    assert calls == [5, 3 if cut else 2] and not part.exists()


def test_replies_that_are_drawn_are_the_same_after_a_restart(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS.model_copy(update={"temperature": 1.0, "seed": 3, "batch_size": 1})
    expected = predict(engine, asked(), tmp_path / "whole.jsonl", options)
    stop_after(engine, 3, monkeypatch)
    with pytest.raises(Stopped):
        predict(engine, asked(), tmp_path / "out.jsonl", options)
    assert predict(engine, asked(), tmp_path / "out.jsonl", options) == expected
    assert len({row["reply"] for row in expected}) > 1


def test_guided_replies_say_how_likely_their_tokens_were_where_that_is_asked(engine: Engine, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    options = GenerateOptions(guide={"kind": "choice", "choice": ["ab", "ba"]}, logprobs=2)
    for row in predict(engine, asked(2), tmp_path / "out.jsonl", options):
        assert row["reply"] in ("ab", "ba") and row["finish_reason"] == "stop"
        assert [one["token"] for one in row["logprobs"]] == list(row["reply"])
        assert all(one["logprob"] < 0 and len(one["top"]) == 2 for one in row["logprobs"])
    assert "logprobs" not in predict(engine, asked(1), tmp_path / "plain.jsonl", OPTIONS)[0]


def test_what_is_added_after_a_row_that_was_cut_short_can_be_read_again(
    echo: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    calls = stop_after(echo, 3, monkeypatch)
    with pytest.raises(Stopped):
        predict(echo, asked(), output, OPTIONS)
    part.write_text(part.read_text()[:-9])
    monkeypatch.undo()
    again = stop_after(echo, 2, monkeypatch)  # stopped a second time, two replies later
    with pytest.raises(Stopped):
        predict(echo, asked(), output, OPTIONS)
    predict(echo, asked(), output, OPTIONS)
    assert calls == [5] and again == [3, 1]


def test_line_separators_inside_a_reply_do_not_break_what_was_done(
    echo: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversations = asked(word="a\u2028b\x85c")
    calls = stop_after(echo, 3, monkeypatch)
    with pytest.raises(Stopped):
        predict(echo, conversations, tmp_path / "out.jsonl", GenerateOptions(max_new_tokens=15, batch_size=2))
    found = predict(echo, conversations, tmp_path / "out.jsonl", GenerateOptions(max_new_tokens=15, batch_size=2))
    assert calls == [5, 2] and "\u2028" in found[0]["reply"]


def test_a_row_that_was_cut_inside_a_character_is_made_again(
    echo: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    calls = stop_after(echo, 3, monkeypatch)
    with pytest.raises(Stopped):
        predict(echo, asked(word="große Frage"), output, OPTIONS)
    whole = part.read_bytes()
    part.write_bytes(whole[: whole.rindex("ß".encode()) + 1])
    assert len(predict(echo, asked(word="große Frage"), output, OPTIONS)) == 5 and calls == [5, 3]


def test_references_are_those_of_the_file_as_it_is_now(
    echo: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(echo, 3, monkeypatch)
    with pytest.raises(Stopped):
        predict(echo, asked(), tmp_path / "out.jsonl", OPTIONS)
    mended = [
        Conversation((*one.prompt().messages, Message("assistant", f"mended {i}"))) for i, one in enumerate(asked())
    ]
    found = predict(echo, mended, tmp_path / "out.jsonl", OPTIONS)
    assert [row["reference"] for row in found] == [f"mended {i}" for i in range(5)]


@pytest.mark.parametrize("changed", ["prompts", "options", "tools"])
def test_replies_to_something_else_are_not_taken_over(
    echo: Engine, changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stop_after(echo, 3, monkeypatch)
    with pytest.raises(Stopped):
        predict(echo, asked(), tmp_path / "out.jsonl", OPTIONS)
    other = asked(word="riddle") if changed == "prompts" else asked()
    if changed == "tools":
        monkeypatch.setattr(layout, "_tools_are_shown", lambda *_, **__: None)
        other = [replace(one, tools=({"type": "function", "function": {"name": "question"}},)) for one in other]
    options = OPTIONS.model_copy(update={"max_new_tokens": 4}) if changed == "options" else OPTIONS
    predict(echo, other, tmp_path / "out.jsonl", options)
    assert calls == [5, 5]


def test_a_prompt_without_room_for_a_reply_is_refused_before_anything_is_written(
    engine: Engine, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="fills the model's context"):
        predict(engine, [*asked(1), *asked(1, word="x" * 99)], tmp_path / "out.jsonl", OPTIONS)
    assert list(tmp_path.iterdir()) == []


def sample(prompt: str, reply: str) -> Example:
    tokens = [*ids(prompt), *ids(reply), END]
    weights = [0.0] * len(ids(prompt)) + [1.0] * (len(tokens) - len(ids(prompt)))
    return Example(np.array(tokens, np.int32), np.array(weights, np.float32))


def test_a_sample_s_prompt_ends_where_its_last_reply_begins() -> None:
    tokens, weights = np.arange(9, dtype=np.int32), np.array([0, 1, 1, 0, 0, 1, 1, 1, 0], np.float32)
    assert prompt_and_reply(Example(tokens, weights)) == ([0, 1, 2, 3, 4], [5, 6, 7])
    assert prompt_and_reply(Example(tokens[:3], weights[:3])) == ([0], [1, 2])


def test_samples_before_and_after_stand_side_by_side(echo: Engine, tmp_path: Path) -> None:
    examples = [sample("one?", "1"), sample("two\u2028lines?", "2")]
    options = GenerateOptions(max_new_tokens=3)
    assert read_samples(tmp_path) == []
    write_samples(tmp_path, echo, examples, options, "before")
    write_samples(tmp_path, echo, examples, options.model_copy(update={"max_new_tokens": 2}), "after")
    assert read_samples(tmp_path) == [
        {"prompt": "one?", "reference": "1", "before": "one", "after": "on"},
        {"prompt": "two\u2028lines?", "reference": "2", "before": "two", "after": "tw"},
    ]
