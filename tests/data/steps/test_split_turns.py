"""Cutting long conversations: no pair lost, none over-long without the policy that says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.steps.conftest import record, run, step_of
from lorikeet.base.errors import OutputError
from lorikeet.data.clean import CleanOptions, clean
from lorikeet.data.steps import split_turns
from lorikeet.data.steps._record import Record
from lorikeet.data.steps.split_turns import TOO_LONG, SplitTurns

WORDS = st.lists(
    st.sampled_from(["hello", "what", "is", "the", "capital", "of", "France", "Paris", "colour", "blue", "1", "2"]),
    max_size=30,
)
TEXTS = WORDS.map(lambda words: " ".join(["say", *words]))
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8)


def counted(step: SplitTurns, piece: Record) -> int:
    from lorikeet.data.formats.sharegpt import ShareGPT

    return step.ruler().tokens(ShareGPT().read(piece.as_row(), piece.origin))


@pytest.mark.parametrize("policy", ["drop", "keep", "cut"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=PAIRS, system=st.booleans(), most=st.integers(30, 120))
def test_no_pair_is_lost(policy: str, pairs: list, system: bool, most: int, tiny_model: Path) -> None:
    texts = [text for question, answer in pairs for text in (f"human: {question}", f"gpt: {answer}")]
    start = ["system: You are a helpful assistant."] if system else []
    options = {"model": str(tiny_model), "max_tokens": most, "too_long": policy}
    step = step_of("split_turns", **options)
    assert isinstance(step, SplitTurns)
    pieces, log = run("split_turns", record(*start, *texts), **options)
    for piece in pieces:
        assert [turn.speaker for turn in piece.turns[: len(start)]] == ["system"] * len(start)
        if policy != "keep" or len(piece.turns) > 2 + len(start):
            assert counted(step, piece) <= most
    told = [turn.text for piece in pieces for turn in piece.turns[len(start) :]]
    cut = [entry["cut"] for entry in log.entries if "cut" in entry]
    if policy == "cut":  # what is cut off a reply is its end
        whole = "".join(told) + "".join(one if isinstance(one, str) else one[1] for one in cut)
        assert sorted(whole) == sorted("".join(text for pair in pairs for text in pair))
    else:
        assert sorted(told + [text for _, text in cut]) == sorted(text for pair in pairs for text in pair)
        assert policy == "drop" or not cut


@pytest.mark.parametrize(
    "one", ["👩\u200d👩\u200d👧", "👍🏽", "🇩🇪", "❤\ufe0f", "e\u0301", "🏴\U000e0067\U000e0062\U000e007f", "\r\n"]
)
@pytest.mark.parametrize("before", ["", "x"])
def test_a_cut_leaves_characters_whole_as_people_see_them(one: str, before: str) -> None:
    text = before + one * 3
    ends = {len(before) + len(one) * count for count in range(4)} | {0}
    for at in range(len(text) + 1):
        assert split_turns.whole(text, at) == max(end for end in ends if end <= at)


def test_a_reply_is_cut_between_emoji(tiny_model: Path) -> None:
    family = "👩\u200d👩\u200d👧"
    for most in range(50, 90):
        told = record("human: hello", f"gpt: blue {family * 8}")
        pieces, _ = run("split_turns", told, model=str(tiny_model), max_tokens=most, too_long="cut")
        kept = pieces[0].turns[1].text.removeprefix("blue ") if pieces else ""
        assert kept == family * (len(kept) // len(family))


def size(model: Path, *texts: str) -> int:
    """Tokens of a conversation of its own."""
    step = step_of("split_turns", model=str(model))
    assert isinstance(step, SplitTurns)
    return counted(step, record(*texts))


FIRST = ("human: What is it?", "gpt: A colour.")
LONG = ("human: Which?", "gpt: " + "blue " * 40)


def test_the_last_pair_that_overflows_stays(tiny_model: Path) -> None:
    most = size(tiny_model, *LONG) + 5
    pieces, log = run("split_turns", record(*FIRST, *LONG, id="x"), model=str(tiny_model), max_tokens=most)
    assert [len(piece.turns) for piece in pieces] == [2, 2] and log.parts == 1
    assert [piece.as_row()["id"] for piece in pieces] == ["x_0", "x_1"]


def test_a_first_pair_too_long_gives_no_empty_piece(tiny_model: Path) -> None:
    most = size(tiny_model, *LONG) - 1
    pieces, log = run("split_turns", record(*LONG, *FIRST), model=str(tiny_model), max_tokens=most)
    assert [piece.texts() for piece in pieces] == [["What is it?", "A colour."]]
    assert log.cuts == {TOO_LONG: 2}
    assert not run("split_turns", record(*LONG), model=str(tiny_model), max_tokens=most)[0]


def test_a_question_without_a_reply_is_no_piece(tiny_model: Path) -> None:
    most = size(tiny_model, *LONG) + 5
    pieces, log = run("split_turns", record(*LONG, "human: Why?"), model=str(tiny_model), max_tokens=most)
    assert log.cuts == {"no reply to it": 1} and len(pieces) == 1


def test_pieces_share_no_turn(tiny_model: Path) -> None:
    texts = ["system: s", *LONG, *LONG, *LONG]
    most = size(tiny_model, "system: s", *LONG) + 5
    pieces, _ = run("split_turns", record(*texts), model=str(tiny_model), max_tokens=most)
    turns = [id(turn) for piece in pieces for turn in piece.turns]
    assert len(pieces) == 3 and len(set(turns)) == len(turns)


def test_another_tokenizer_makes_another_output(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source, output = tmp_path / "model", tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    shutil.copytree(tiny_model, model)
    source.write_text(json.dumps(record(*FIRST).as_row()) + "\n")
    step = {"kind": "split_turns", "model": str(model)}
    options = CleanOptions.model_validate({"input": [str(source)], "output": output, "steps": [step]})
    clean(options)
    assert clean(options).rows_out == 1, "the same again is left as it is"
    settings_file = model / "tokenizer_config.json"
    said = json.loads(settings_file.read_text())
    settings_file.write_text(json.dumps({**said, "chat_template": "Read this. " + said["chat_template"]}))
    monkeypatch.setattr(split_turns, "_RULERS", {})  # as in another process
    with pytest.raises(OutputError, match="other inputs or steps"):
        clean(options)


def test_what_is_remembered_has_an_end(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = step_of("split_turns", model=str(tiny_model))
    assert isinstance(step, SplitTurns)
    remembering = step.ruler().tokenizer
    monkeypatch.setattr(split_turns, "_MEMORY", 1000)
    for number in range(30):
        remembering.encode(f"{number} " + "blue " * 40)
    assert 0 < sum(len(text) for text, _ in remembering.known) <= 1000
