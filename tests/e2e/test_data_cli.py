"""lorikeet data show, check and ledger as commands: what they print, write and return; bad files never end in a
traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Place, leftovers
from .test_bad_data import CHAT, FILES, GOOD, lines

Write = Callable[[str, "str | bytes"], Path]
ODD: list[tuple[str, str | bytes]] = [
    ("nulls.jsonl", lines({"messages": None}, {"messages": [None]}, {"messages": [{"role": None, "content": None}]})),
    ("numbers.json", json.dumps([{"instruction": 1e308, "output": -0.0}, {"instruction": [], "output": {}}])),
    ("keys.jsonl", lines({"": "", "instruction": "a", "output": "b", "\x00": "c"})),
    ("half.json", json.dumps([{"instruction": "\ud83d", "output": "b"}, GOOD])),
    ("mixed.jsonl", lines(GOOD, {"messages": CHAT}, {"text": "a"}, {"conversations": []})),
    ("nested.json", json.dumps([{"messages": [[CHAT]]}, {"messages": {"role": "user"}}])),
    ("bools.jsonl", lines({"instruction": True, "output": False})),
    ("long_name.jsonl", lines({"instruction": "a", "output": "b", "x" * 5000: 1})),
    ("huge.jsonl", lines({"instruction": "a", "output": "b" * 300_000})),
    ("nul.jsonl", lines({"instruction": "a\x00", "output": "\x00"})),
    ("marks.jsonl", lines({"instruction": "\uf8e70\uf8e8", "output": "\uf8e71\uf8e8 \U0010ffff"})),
    ("controls.jsonl", lines({"instruction": "<|im_end|>" * 50, "output": "<|im_start|>assistant\n"})),
    ("spaces.jsonl", lines({"instruction": "\u3000", "output": "\u200b"})),
    ("tails.jsonl", lines({"messages": [CHAT[1], CHAT[0]]}, {"messages": [CHAT[1]]}, {"messages": [*CHAT, CHAT[0]]})),
    ("twice.csv", 'instruction,output\n"a\nb",""\n'),
    ("tabs.csv", "instruction\toutput\na\tb\n"),
]
MALFORMED = [(name, content) for name, content, *_ in FILES] + ODD


@pytest.mark.parametrize(("name", "content"), MALFORMED, ids=[name for name, _ in MALFORMED])
def test_a_malformed_file_is_an_error_or_a_finding(place: Place, write: Write, name: str, content: str | bytes) -> None:
    write(name, content)
    for model in ([], ["--model", place.model]) if name in dict(ODD) else ([],):
        result = place.run("data", "check", name, "--json", *model)
        assert "Traceback" not in result.err and "is a fault of Lorikeet" not in result.err
        assert result.code in (0, 1, 2), result.err
        if result.code == 2:
            assert "Error: " in result.err and len(result.err.splitlines()) < 8
            continue
        report = json.loads(result.out)
        assert (result.code == 1) == (report["errors"] > 0)
        findings = [one for check in report["checks"].values() for one in check["findings"]]
        assert all(one["file"].endswith(name) and one["row"] >= 0 and one["what"] for one in findings)


@pytest.mark.parametrize(("name", "content"), ODD, ids=[name for name, _ in ODD])
def test_the_ledger_of_a_malformed_file(place: Place, write: Write, name: str, content: str | bytes) -> None:
    write(name, content)
    place.recipe(data={"train": [name], "bad_rows": "skip", "validation": "-"})
    result = place.run("data", "ledger", "recipe.yaml", "-o", "out.jsonl")
    assert "Traceback" not in result.err and "is a fault of Lorikeet" not in result.err
    if result.code == 0:
        assert json.loads((place.folder / "out.summary.json").read_text())["balance"] == 0
    else:
        assert result.code == 2 and not (place.folder / "out.jsonl").exists() and leftovers() == []


def test_check_of_a_clean_recipe(place: Place) -> None:
    place.recipe()
    said = place.ok("data", "check", "recipe.yaml", "--picture", "lengths.svg")
    assert said.out.rstrip().endswith("24 rows of 1 file, 16 checks: 0 errors, 0 warnings")
    assert "replies by script: Latin 24" in said.out and "tokens: median" in said.out
    assert "max_length 128" in (place.folder / "lengths.svg").read_text()


def test_check_finds_rows_and_fails(place: Place, write: Write, rows: list[dict[str, Any]]) -> None:
    turns = rows[3]["messages"]
    bad = [*rows, {"messages": [*turns[:-1], {**turns[-1], "content": ""}]}, {"messages": rows[5]["messages"]}]
    write("bad.jsonl", lines(*bad))
    place.recipe(data={"train": ["bad.jsonl"]})
    result = place.run("data", "check", "recipe.yaml")
    assert result.code == 1
    assert "bad.jsonl row 24 (line 25): message 2 is empty" in result.out
    assert "bad.jsonl row 25 (line 26): says what row 5 says" in result.out
    assert result.err.splitlines()[-3].startswith("CheckFailed: data check: the data have errors")
    left = place.run("data", "check", "recipe.yaml", "data.bad_rows=skip", "--without", "repeated_rows")
    assert left.code == 0 and "0 errors, 1 warning" in left.out
    told = json.loads(place.run("data", "check", "bad.jsonl", "--json", "--only", "empty_text").out)
    assert list(told["checks"]) == ["empty_text"] and told["checks"]["empty_text"]["findings"][0]["row"] == 24


def test_check_of_two_files(place: Place, write: Write) -> None:
    write("one.jsonl", lines(GOOD))
    write("two.jsonl", lines({**GOOD, "output": "Red."}))
    said = place.ok("data", "check", "one.jsonl", "two.jsonl", "data.max_length=64", "--model", place.model)
    assert "answered in 2 ways" in said.out and "2 rows of 2 files" in said.out


@pytest.mark.parametrize(
    ("words", "error", "fact"),
    [
        ("check none.jsonl", "DataError: none.jsonl: no such file", "given"),
        ("check data.max_length=64", "RecipeError: data check: nothing to check", "mine.json"),
        ("check recipe.yaml tiny.jsonl", "RecipeError: data check: a recipe names its data", "tiny.jsonl"),
        ("check tiny.jsonl --only leaks", "RecipeError: there is no check 'leaks'", "leakage"),
        ("check tiny.jsonl --only none.py", "RecipeError: kind: no such file", "none.py"),
        ("check tiny.jsonl train.seed=1", "RecipeError: train: has no effect here", "data.option=value"),
        ("check tiny.jsonl data.max_lenght=9", "RecipeError: data.max_lenght", "data.max_length"),
        ("check tiny.jsonl --only bos --picture a.svg", "RecipeError: --picture: has no effect", "a.svg"),
        ("show recipe.yaml --row 99", "RecipeError: --row: there is no such row", "0 to 23"),
        ("show recipe.yaml -o a.png", "OutputError: a.png: a picture of this kind", ".html .svg"),
        ("ledger none.yaml", "RecipeError: ", "none.yaml"),
        ("ledger recipe.yaml -o tiny.jsonl", "OutputError: tiny.jsonl is one of the data's own files", "ledger.jsonl"),
        ("ledger recipe.yaml -o recipe.yaml", "OutputError: recipe.yaml is no name of such a file", ".jsonl"),
        ("ledger recipe.yaml -o run", "OutputError: run is no name of such a file", "ledger.jsonl"),
        ("ledger recipe.yaml -o tiny.jsonl/a.jsonl", "OutputError: ", "tiny.jsonl is a file"),
        ("check recipe.yaml --picture tiny.jsonl", "OutputError: tiny.jsonl is no name of such a file", ".svg"),
        ("check tiny.jsonl --picture tiny.jsonl/a.svg", "OutputError: ", "tiny.jsonl is a file"),
    ],
)
def test_bad_requests(place: Place, words: str, error: str, fact: str) -> None:
    place.recipe()
    (place.folder / "run").mkdir()
    place.refused(["data", *words.split()], error, fact)


def test_a_recipe_need_not_say_where_a_run_would_be(place: Place) -> None:
    place.recipe(output_dir="-")
    for words in (["check", "recipe.yaml"], ["show", "recipe.yaml", "-n", "1"], ["ledger", "recipe.yaml"]):
        place.ok("data", *words)
    assert "output_dir" in place.run("train", "recipe.yaml").err


def test_the_format_that_was_found_is_said_once(place: Place) -> None:
    """Preparing and walking both find it; data that are prepared already are only walked."""
    place.recipe()
    for words in (["ledger", "recipe.yaml"], ["ledger", "recipe.yaml"], ["show", "recipe.yaml", "data.max_length=64"]):
        assert place.ok("data", *words).err.count("format messages") == 1, words


def test_ledger(place: Place, rows: list[dict[str, Any]]) -> None:
    place.recipe()
    said = place.ok("data", "ledger", "recipe.yaml")
    values = dict(line.split(None, 1) for line in said.out.splitlines())
    assert values["rows"] == "24" and values["balance"] == "0" and values["characters_rejected"] == "0"
    told = [json.loads(line) for line in (place.folder / "ledger.jsonl").read_text().splitlines()]
    assert [line["row"] for line in told] == list(range(24))
    sides = [example["side"] for line in told for example in line["examples"]]
    assert sides.count("validation") == 4 and sides.count("train") == 20
    for line, row in zip(told, rows):
        (example,) = line["examples"]
        reply = len(row["messages"]) - 1
        assert {entry[3] for entry in example["trained"]} == {reply}
        covered = [
            index for *_, start, end, _ in example["trained"] if start is not None for index in range(start, end)
        ]
        assert covered == list(range(len(row["messages"][reply]["content"])))
        assert example["trained"][-1][4:] == [None, None, "end"]


def test_show_a_row_and_pages(place: Place) -> None:
    place.recipe(data={"max_length": 48, "truncation": "drop"})
    row = place.ok("data", "show", "recipe.yaml", "--row", "1").out
    assert "tiny.jsonl:2" in row and "longer than max_length" in row
    place.ok("data", "show", "recipe.yaml", "-n", "2", "data.max_length=128", "-o", "page.html")
    page = (place.folder / "page.html").read_text()
    assert page.count("<h2>") == 2 and "message 1, characters 0 to " in page
    place.ok("data", "show", "recipe.yaml", "-n", "2", "data.max_length=128", "-o", "drawing.svg")
    assert (place.folder / "drawing.svg").read_text().startswith("<svg")
