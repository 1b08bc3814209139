"""Checks on rows that once got past them, and on rows that they took for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorikeet.data import checking
from lorikeet.data.checks._contract import Setting
from lorikeet.data.histogram import Histogram
from lorikeet.data.pipeline import DataOptions
from lorikeet.data.walk import walk


def found(folder: Path, *rows: dict[str, Any]) -> dict[str, dict[int, str]]:
    """check -> row -> level, of what is found without a model."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = DataOptions(train=[str(folder / "rows.jsonl")], validation=None)
    report = checking.run(walk(options, None, go_on=True), checking.chosen(), Setting(options, None))
    return {one.name: {finding.origin.row: level for level, finding in one.findings} for one in report.checks}


def talk(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def test_a_question_without_words_is_found(tmp_path: Path) -> None:
    rows = talk("", "An answer."), talk(" \n", "To nothing."), talk("nan", "It is a number."), talk("Why?", "So.")
    assert found(tmp_path, *rows)["empty_text"] == dict.fromkeys(range(3), "warning")


def test_an_input_that_an_export_wrote_for_nothing_is_found(tmp_path: Path) -> None:
    row = {"instruction": "Add them.", "output": "3"}
    told = found(tmp_path, {**row, "input": "nan"}, {**row, "input": "1, 2"}, {**row, "input": ""}, row)
    assert told["empty_text"] == {0: "warning"}


def test_a_call_without_words_is_no_empty_reply(tmp_path: Path) -> None:
    row = talk("Why?", "")
    row["messages"][1]["tool_calls"] = [{"function": {"name": "f", "arguments": {}}}]
    assert found(tmp_path, row)["empty_text"] == {}


def test_the_same_question_with_other_tools_is_another(tmp_path: Path) -> None:
    rows = [
        talk("Add 1 and 2.", answer, tools=[{"type": "function", "function": {"name": name, "parameters": {}}}])
        for name, answer in (("add", "I called add."), ("sum", "I called sum."), ("plus", "I called add."))
    ]
    told = found(tmp_path, *rows)
    assert told["conflicting_answers"] == told["repeated_rows"] == {}
    told = found(tmp_path, rows[0], rows[0])
    assert told["repeated_rows"] == {1: "warning"}


def test_rows_that_just_fit_are_not_beyond() -> None:
    for limit in (8192, 16384, 32768, 131072):
        histogram = Histogram(limit=limit)
        for length in (limit - 1, limit, limit, limit + 1, limit + 2):
            histogram.add(length)
        told = histogram.as_dict(limit)
        assert (told["beyond_max_length"], told["longest"]) == (2, limit + 2)
        assert sum(count for low, _, count in histogram.bars(limit) if low > limit) == 2
