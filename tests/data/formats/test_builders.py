"""Dolly, SQuAD and Commonsense Dialogues: their rows, their filters, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Origin
from lorikeet.data.formats._contract import Format
from lorikeet.data.formats.auto import detect
from lorikeet.data.formats.dialogue import Dialogue
from lorikeet.data.formats.dolly import Dolly
from lorikeet.data.formats.squad import Squad

HERE = Origin("f.json", 0)
DOLLY = {"instruction": "Who wrote it?", "context": "By Ann.", "response": "Ann.", "category": "closed_qa"}
HUB = {"id": "1", "title": "T", "context": "A b.", "question": "What?", "answers": {"text": ["b"], "answer_start": [2]}}
NONE = {**HUB, "answers": {"text": [], "answer_start": []}}
QAS = [
    {"question": "Q1", "answers": [{"text": "one"}, {"text": "1"}], "is_impossible": False},
    {"question": "Q2", "answers": [], "is_impossible": True},
    {"question": "Q3", "answers": [{"text": "three"}], "is_impossible": False},
]
TALK = {"context": "Ann is late .", "speaker": "Ann", "turns": ["Hi , you ?", "Fine .", "Bye !"]}


def said(format: Format, row: dict[str, Any], **more: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in format.read(row, HERE, **more).messages]


def test_dolly() -> None:
    assert said(Dolly(), DOLLY) == [("user", "Who wrote it?\nBy Ann."), ("assistant", "Ann.")]
    assert Dolly().read(DOLLY, HERE).messages[0].context == "By Ann."
    assert said(Dolly(), {**DOLLY, "context": ""})[0] == ("user", "Who wrote it?")
    assert said(Dolly(min_words=3, categories=("closed_qa",)), DOLLY)


def test_squad() -> None:
    assert said(Squad(), HUB) == [("user", "A b.\n\nWhat?"), ("assistant", "b")]
    assert said(Squad(no_answer="It does not say."), NONE)[1] == ("assistant", "It does not say.")
    turns = said(Squad(), {"context": "P", "qas": QAS})
    assert turns == [("user", "P\n\nQ1"), ("assistant", "one"), ("user", "Q3"), ("assistant", "three")]


def test_squad_s_own_file(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    article = {"title": "T", "paragraphs": [{"context": "P", "qas": QAS}, {"context": "R", "qas": QAS[:1]}]}
    file.write_text(json.dumps({"version": "v2.0", "data": [article, article]}))
    rows = list(Squad().rows(str(file)))
    assert [origin.row for _, origin in rows] == [0, 1, 2, 3]
    assert len(Squad().read(*rows[1]).messages) == 2


def test_dialogues() -> None:
    assert said(Dialogue(), TALK) == [("system", "Ann is late."), ("user", "Hi, you?"), ("assistant", "Fine.")]
    assert said(Dialogue(tidy=False), TALK)[1] == ("user", "Hi , you ?")
    assert said(Dialogue(), TALK, reply=False)[-1] == ("user", "Bye!")


@pytest.mark.parametrize(("row", "kind"), [(DOLLY, "dolly"), (HUB, "squad"), (TALK, "dialogue")])
def test_they_are_recognised(row: dict[str, Any], kind: str) -> None:
    assert detect([row])[-1].model_dump()["kind"] == kind


@pytest.mark.parametrize(
    ("format", "row", "match"),
    [
        (Dolly(min_words=5), DOLLY, "too short"),
        (Dolly(categories=("open_qa",)), DOLLY, "another category"),
        (Dolly(), {"instruction": "a", "context": ""}, "no column 'response'"),
        (Dolly(), {**DOLLY, "response": 3}, "not text"),
        (Squad(), NONE, "no question that the passage answers"),
        (Squad(), {"context": "x"}, "no column 'question'"),
        (Squad(), {"question": "x", "answers": []}, "no column 'context'"),
        (Squad(), {**HUB, "answers": "b"}, "no list of answers"),
        (Squad(), {"context": "x", "qas": "y"}, "no list"),
        (Dialogue(), {"turns": ["a"]}, "too few turns"),
        (Dialogue(min_turns=4), TALK, "too few turns"),
        (Dialogue(), {"turns": "a"}, "no list"),
        (Dialogue(), {"turns": ["a", 5]}, "turn 1 is not text"),
        (Dialogue(), {"context": "x"}, "no column 'turns'"),
    ],
)
def test_what_cannot_be_used_is_told(format: Format, row: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        format.read(row, HERE)
