"""Rows as records, a step run over them, and what became of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lorikeet.base.kinds import kind_class
from lorikeet.base.nouns import Origin
from lorikeet.data.steps import _recipe
from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import Record, Turn


def record(*texts: str, row: int = 0, speakers: tuple[str, ...] = ("human", "gpt"), **rest: Any) -> Record:
    """A record of turns that two speakers take; `who: text` names another speaker."""
    turns = []
    for number, text in enumerate(texts):
        who, colon, said = text.partition(": ")
        named = colon and who.isidentifier() and who.islower()
        turns.append(Turn(who, said) if named else Turn(speakers[number % len(speakers)], text))
    return Record(Origin("a.json", row, row + 1), turns, rest)


def step_of(kind: str, **options: Any) -> Step:
    step = kind_class(_recipe.PACKAGE, Step, kind).model_validate({"kind": kind, **options})
    step.start()
    return step


def run(kind: str, *records: Record, **options: Any) -> tuple[list[Record], Log]:
    """What the step let through, and its log, in which every row is accounted for."""
    log = Log(kind)
    found = list(step_of(kind, **options).clean(iter(records), log))
    log.check()
    return found, log


@pytest.fixture
def cleaned() -> Callable[..., tuple[list[Record], Log]]:
    return run
