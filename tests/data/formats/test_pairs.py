"""Prompt and completion, chosen and rejected: what is learned and what is context."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Origin
from lorikeet.data.formats.auto import Auto
from lorikeet.data.formats.preference import Preference
from lorikeet.data.formats.prompt_completion import PromptCompletion
from lorikeet.data.formats.sharegpt import ShareGPT
from lorikeet.data.pipeline import DataOptions, prepare

AT = Origin("file.json", 7)


def told(conversation) -> list[tuple[str, str, bool]]:
    """(role, text, learned) of each message."""
    return [
        (message.role, message.content, message.role == "assistant" and message.trained is not False)
        for message in conversation.messages
    ]


def say(*texts: str, first: int = 0) -> list[dict]:
    return [{"role": ("user", "assistant")[(first + at) % 2], "content": text} for at, text in enumerate(texts)]


def turns(*texts: str, first: int = 0) -> list[dict]:
    return [{"from": ("human", "gpt")[(first + at) % 2], "value": text} for at, text in enumerate(texts)]


Q, A = ("user", "q", False), ("assistant", "a", True)


def test_prompts_and_completions() -> None:
    read = PromptCompletion().read
    assert told(read({"prompt": "q", "completion": "a"}, AT)) == [Q, A]
    assert told(read({"prompt": "q", "completion": "a", "system": "s"}, AT)) == [("system", "s", False), Q, A]
    longer = {"prompt": say("x", "y", "q"), "completion": say("a", "r", "b", first=1), "tools": [{"name": "f"}]}
    expected = [("user", "x", False), ("assistant", "y", False), Q, A, ("user", "r", False), ("assistant", "b", True)]
    assert told(read(longer, AT)) == expected and len(read(longer, AT).tools) == 1
    assert told(read({"prompt": say("q"), "completion": "a", "label": True}, AT)) == [Q, A]
    assert told(read({"prompt": say("q")}, AT, reply=False)) == [Q]
    for row in (longer, {"prompt": "q", "completion": "a"}, {"prompt": say("q")}):
        assert isinstance(Auto().settle([row], "f.json"), PromptCompletion)


SHAPES = {
    "texts": lambda q, a, b: {"prompt": q, "chosen": a, "rejected": b},
    "message lists": lambda q, a, b: {"prompt": say(q), "chosen": say(a, first=1), "rejected": say(b, first=1)},
    "whole conversations": lambda q, a, b: {"chosen": say(q, a), "rejected": say(q, b)},
    "prompt twice": lambda q, a, b: {"prompt": q, "chosen": say(q, a), "rejected": say(q, b), "score_chosen": 7.0},
    "chosen three times": lambda q, a, b: {"chosen": say(q, a), "rejected": say(q, b), "messages": say(q, a)},
    "sharegpt": lambda q, a, b: {
        "conversations": turns(q),
        "chosen": turns(a, first=1)[0],
        "rejected": turns(b, first=1)[0],
    },
    "sharegpt lists": lambda q, a, b: {"chosen": turns(q, a), "rejected": turns(q, b)},
    "alpaca": lambda q, a, b: {"instruction": q, "input": "", "chosen": a, "rejected": b},
    "alpaca, chosen again": lambda q, a, b: {"instruction": q, "output": a, "chosen": a, "rejected": b},
    "question": lambda q, a, b: {"question": q, "chosen": a, "rejected": b},
}


@pytest.mark.parametrize("shape", SHAPES)
@given(texts=st.lists(st.text("abc é", min_size=1, max_size=9).filter(str.strip), min_size=3, max_size=3))
@settings(max_examples=15, deadline=None)
def test_every_shape_says_the_same(shape: str, texts: list[str]) -> None:
    row = SHAPES[shape](*texts)
    format_ = Auto().settle([row], "f.json")
    assert isinstance(format_, Preference)
    assert told(format_.read(row, AT)) == [("user", texts[0], False), ("assistant", texts[1], True)]
    assert told(Preference().read(row, AT)) == told(format_.read(row, AT)), "without a look at the first rows too"
    assert told(format_.read(row, AT, reply=False)) == [("user", texts[0], False)]


def test_context_is_not_learned() -> None:
    row = {"chosen": say("x", "y", "q", "a", "r", "c"), "rejected": say("x", "y", "q", "b")}
    expected = [("user", "x", False), ("assistant", "y", False), Q, A, ("user", "r", False), ("assistant", "c", True)]
    assert told(Preference().read(row, AT)) == expected
    row = {"system": "s", "conversations": turns("x", "y", "q"), "chosen": turns("a", first=1), "rejected": "b"}
    expected = [("system", "s", False), ("user", "x", False), ("assistant", "y", False), Q, A]
    assert told(Preference().read(row, AT)) == expected
    same = {"prompt": "q", "chosen": "a", "rejected": "a"}
    assert told(Preference().read(same, AT)) == [Q, A], "the last reply is learned even where both sides agree"


def test_system_prompts_of_both_places() -> None:
    whole = {"chosen": say("q", "a"), "rejected": say("q", "b"), "question": "q", "system": "s"}
    format_ = Auto().settle([whole], "f.json")
    assert told(format_.read(whole, AT)) == [("system", "s", False), Q, A]
    own = [{"role": "system", "content": "o"}, *say("q", "a")]
    row = {"system": "s", "prompt": "q", "completion": "", "chosen": own, "rejected": own}
    assert told(Preference().read(row, AT))[0] == ("system", "o", False)


def test_names_of_llama_factory() -> None:
    row = {
        "chat": [{"who": "Ann", "what": "q"}],
        "gut": {"who": "Bot", "what": "a"},
        "schlecht": {"who": "Bot", "what": "b"},
    }
    context = ShareGPT(messages="chat", role_tag="who", content_tag="what", user_tag="ann", assistant_tag="bot")
    format_ = Preference(chosen="gut", rejected="schlecht", context=context)
    assert told(format_.read(row, AT)) == [Q, A]
    same = Preference(chosen="gut", rejected="schlecht", context=context.model_dump())
    assert same == format_ and same.model_dump()["context"]["user_tag"] == "ann"
    with pytest.raises(ValidationError, match="cannot be 'preference' again"):
        Preference(context="preference")


def test_it_is_said_once_a_file(tmp_path: Path, tokenizer, cache, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(SHAPES["sharegpt"](f"q{n}", f"a{n}", f"b{n}")) for n in range(12)))
    options = DataOptions(train=[str(path)])
    prepared = prepare(options, tokenizer, options.template.bind(tokenizer), seed=0)
    said = capsys.readouterr().err
    assert said.count("'chosen' is learned, 'rejected' is left aside") == 1 and "format preference" in said
    shown = "".join(tokenizer.decode(prepared.train[at].tokens) for at in range(12))
    assert all(f"a{n}" in shown and f"b{n}" not in shown for n in range(12))


BAD = {
    "no rejected": ({"prompt": "q", "chosen": "a"}, ["'rejected'"]),
    "no prompt": (
        {"chosen": "Human: q Assistant: a", "rejected": "b", "id": 3},
        ["no prompt", "columns chosen rejected"],
    ),
    "a null side": ({"prompt": "q", "chosen": None, "rejected": "b"}, ["'chosen'", "null"]),
    "an empty side": ({"prompt": "q", "chosen": "a", "rejected": ""}, ["'rejected' is empty"]),
    "an empty list": ({"prompt": "q", "chosen": [], "rejected": say("b", first=1)}, ["'chosen'", "at least one"]),
    "only a question": ({"chosen": say("q"), "rejected": say("q")}, ["no assistant message"]),
    "another question": (
        {"prompt": "q", "chosen": say("r", "a"), "rejected": say("r", "b")},
        ["differ", "'q'", "'r'"],
    ),
    "a third reply": (
        {"instruction": "q", "output": "c", "chosen": "a", "rejected": "b"},
        ["neither side", "given    c"],
    ),
    "an odd role": (
        {"prompt": "q", "chosen": {"from": "gtp", "value": "a"}, "rejected": "b"},
        ["chosen: turn 0", "'gtp'"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_preferences(case: str) -> None:
    row, expected = BAD[case]
    with pytest.raises(DataError) as caught:
        Preference().read(row, AT)
    assert all(part in str(caught.value) for part in ["file.json row 7", *expected]), str(caught.value)
    assert len(str(caught.value).split("\n")) <= 4


BAD_COMPLETIONS = {
    "no completion": ({"prompt": "q", "compeltion": "a"}, ["'completion'", "'compeltion'"]),
    "no reply in it": ({"prompt": say("q"), "completion": say("r")}, ["'completion' has no assistant", "roles user"]),
    "a bad one": ({"prompt": "q", "completion": "a", "label": False}, ["bad one", "label false"]),
    "a number": ({"prompt": 3, "completion": "a"}, ["'prompt'", "int: 3"]),
    "a mixed list": ({"prompt": ["q", {}], "completion": "a"}, ["'prompt'", "list of turns"]),
}


@pytest.mark.parametrize("case", BAD_COMPLETIONS)
def test_bad_completions(case: str) -> None:
    row, expected = BAD_COMPLETIONS[case]
    with pytest.raises(DataError) as caught:
        PromptCompletion().read(row, AT)
    assert all(part in str(caught.value) for part in ["file.json row 7", *expected]), str(caught.value)


def test_a_format_that_reads_one_reply_refuses_pairs() -> None:
    with pytest.raises(DataError, match="format=preference"):
        ShareGPT().read(SHAPES["sharegpt"]("q", "a", "b"), AT)


@pytest.mark.parametrize(
    ("row", "remedy"),
    [
        ({"frage": "a", "antwort": "b"}, "data.format='{kind: columns, prompt: frage, response: antwort}'"),
        ({"instructon": "a", "anser": "b"}, "rename the column 'instructon' to 'instruction'"),
        ({"colour": "a", "size": "b", "height": "c"}, "data.format='{kind: columns, prompt: NAME, response: NAME}'"),
    ],
)
def test_columns_that_no_format_knows(row: dict[str, str], remedy: str) -> None:
    with pytest.raises(DataError) as caught:
        Auto().settle([row], "rows.jsonl")
    assert f"try      {remedy}" in str(caught.value)
