"""Rows and requests that make no sense to `lorikeet data clean`: named rejects, and one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.test_clean import balanced, cleaned, some_rows, talk, write
from lorikeet.cli.main import run_command

SHAPES: dict[str, Any] = {
    "no list": {"conversations": None},
    "a list of texts": {"conversations": ["q", "a"]},
    "an empty list": {"conversations": []},
    "a number": talk(("human", 3), ("gpt", "a")),  # type: ignore[arg-type]
    "null": talk(("human", None), ("gpt", "a")),  # type: ignore[arg-type]
    "no speaker": {"conversations": [{"value": "q"}]},
    "a speaker that is a number": {"conversations": [{"from": 1, "value": "q"}]},
    "no text": {"conversations": [{"from": "human"}]},
    "half a character": talk(("human", "\ud83d"), ("gpt", "a")),
    "two system prompts": {**talk(("system", "s"), ("human", "q")), "system": "t"},
    "an unknown speaker": talk(("narrator", "q"), ("gpt", "a")),
    "the list is missing": {"id": 1},
    "a huge number": talk(("human", "q"), ("gpt", "an answer"), id=1 << 80),
    "a NUL": talk(("human", "q\0"), ("gpt", "<p>an\0swer</p>")),
}


@pytest.mark.parametrize("case", SHAPES)
def test_a_row_that_cannot_be_used_is_rejected_by_name(tmp_path: Path, case: str) -> None:
    good = talk(("human", "question"), ("gpt", "a fine answer"))
    source = write(tmp_path / "one.json", [good, SHAPES[case], good])
    report = cleaned(
        [source], tmp_path / "out.jsonl", ["roles", "html_to_markdown", {"kind": "language", "keep": ["en"]}]
    )
    balanced(report, tmp_path / "out.jsonl", 3)
    assert report.rows_out >= 2


BAD: dict[str, tuple[str, str]] = {
    "no input": ("-o out.jsonl --steps roles", "input"),
    "no output": ("good.json --steps roles", "output"),
    "no steps": ("good.json -o out.jsonl", "steps"),
    "no such file": ("none.json -o out.jsonl --steps roles", "none.json"),
    "an empty file": ("empty.json -o out.jsonl --steps roles", "empty"),
    "broken JSON": ("broken.json -o out.jsonl --steps roles", "broken JSON"),
    "not UTF-8": ("latin.jsonl -o out.jsonl --steps roles", "UTF-8"),
    "a row that is a list": ("lists.jsonl -o out.jsonl --steps roles", "object"),
    "unknown columns": ("odd.jsonl -o out.jsonl --steps roles", "no format"),
    "an unknown step": ("good.json -o out.jsonl --steps rolls", "roles"),
    "an option of no step": ("good.json -o out.jsonl --steps roles dedupe.near=1", "dedupe"),
    "an unknown option": ("good.json -o out.jsonl --steps dedupe dedupe.nearly=1", "nearly"),
    "a wrong value": ("good.json -o out.jsonl --steps dedupe dedupe.near=high", "near"),
    "out of range": ("good.json -o out.jsonl --steps dedupe dedupe.near=80", "near"),
    "an unknown ending": ("good.json -o out.csv --steps roles", "out.csv"),
    "a folder": ("good.json -o folder.jsonl --steps roles", "folder"),
    "the input itself": ("good.json -o good.json --steps roles", "input"),
    "the input by another name": ("good.json -o link.json --steps roles", "input"),
    "below a file": ("good.json -o good.json/out.jsonl --steps roles", "written"),
    "a step that needs an option": ("good.json -o out.jsonl --steps blocklist", "phrases"),
    "no such recipe": ("good.json -o out.jsonl -r none.yaml", "none.yaml"),
    "a recipe that is a list": ("good.json -o out.jsonl -r list.yaml", "mapping"),
    "an unknown key": ("good.json -o out.jsonl -r key.yaml", "key.yaml:1"),
    "steps that are a mapping": ("good.json -o out.jsonl -r mapping.yaml", "steps"),
    "a step that is a number": ("good.json -o out.jsonl -r number.yaml", "steps"),
    "an option of a number": ("good.json -o out.jsonl -r number.yaml dedupe.near=0.8", "sets no option"),
    "no such model": ("good.json -o out.jsonl --steps split_turns split_turns.model=./none", "none"),
    "no such format": ("good.json -o out.jsonl --steps roles --format sharegtp", "sharegpt"),
    "the same file twice": ("good.json ./good.json -o out.jsonl --steps roles", "twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "good.json", some_rows(10))
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "broken.json").write_text('[{"conversations": [}]')
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    (tmp_path / "lists.jsonl").write_text("[1]\n")
    (tmp_path / "odd.jsonl").write_text('{"x": 1}\n')
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "link.json").symlink_to("good.json")
    (tmp_path / "list.yaml").write_text("- roles\n")
    (tmp_path / "key.yaml").write_text("stepps: [roles]\nsteps: [roles]\n")
    (tmp_path / "mapping.yaml").write_text("steps: {roles: 1}\n")
    (tmp_path / "number.yaml").write_text("steps: [3]\n")
    before = {path: path.stat().st_size for path in tmp_path.iterdir()}
    arguments, said = BAD[case]
    assert run_command(["data", "clean", *arguments.split()]) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told and "fault of Lorikeet" not in told
    left = {path: path.stat().st_size for path in tmp_path.iterdir()}
    assert left == before, "nothing half-written"
