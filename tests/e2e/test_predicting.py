"""lorikeet predict reads rows as those that the run was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Place
from .test_bad_data import lines

COLUMNS = {"kind": "columns", "prompt": "messages", "response": "answer"}


@pytest.fixture
def run(place: Place) -> Path:
    """A run on rows whose columns only its recipe can tell: `messages` is a plain question."""
    rows = [{"messages": f"What is {n}?", "answer": f"It is {n}."} for n in range(8)]
    (place.folder / "own.jsonl").write_text(lines(*rows))
    place.recipe(data={"train": ["own.jsonl"], "validation": "-", "format": COLUMNS}, train={"max_steps": 1})
    place.ok("train", "recipe.yaml", "evaluate.samples=0")
    return place.folder / "run"


def _predicted(place: Place, run: Path, name: str) -> tuple[dict[str, object], str]:
    said = place.ok("predict", run, name, "-o", "replies.jsonl", "generate.max_new_tokens=2").err
    return json.loads((place.folder / "replies.jsonl").read_text().splitlines()[0]), said


def test_rows_like_the_runs_own(place: Place, run: Path) -> None:
    (place.folder / "asked.jsonl").write_text(lines({"messages": "What is 3?", "answer": "3", "question": "no"}))
    row, said = _predicted(place, run, "asked.jsonl")
    assert row["messages"] == [{"role": "user", "content": "What is 3?"}] and row["reference"] == "3"
    assert "format" not in said


def test_other_rows_are_looked_at(place: Place, run: Path) -> None:
    row, said = _predicted(place, run, "tiny.jsonl")
    assert row["reference"] == "The answer is 0."
    assert "tiny.jsonl: not in the run's data.format (columns)" in said and "tiny.jsonl: format messages" in said


def test_rows_that_nothing_reads(place: Place, run: Path) -> None:
    (place.folder / "odd.jsonl").write_text(lines({"frage": "Wie?"}))
    place.refused(["predict", str(run), "odd.jsonl", "-o", "replies.jsonl"], "DataError: odd.jsonl", "messages")
