# ruff: noqa: E501  a table of cases is read by its rows
"""Bad data files: each is refused with the file and the line, and nothing is written."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Place

TRAIN = "train recipe.yaml"
Write = Callable[[str, "str | bytes"], Path]


def lines(*rows: Any) -> str:
    """Rows as JSON Lines; a string is a line as it stands."""
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


GOOD = {"instruction": "Name a colour.", "output": "Blue."}
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]

# the file, what is in it, how the message begins, what else it says
FILES: list[tuple[str, str | bytes, str, list[str]]] = [
    ("empty.jsonl", "", "DataError: {}: the file is empty", ["0 bytes", "one row or more"]),
    ("blank.jsonl", "\n\n", "DataError: {}: there are no rows", []),
    ("list.json", "[]", "DataError: {}: there are no rows", []),
    ("broken.jsonl", lines(GOOD, GOOD, '{"instruction": "a", "output": }'), "DataError: {}:3: broken JSON at column", ['"output": }']),
    ("broken.json", '[\n{"instruction": "a", "output": "b"},\n{"instruction": "a"\n', "DataError: {}:4: broken JSON", []),
    ("object.json", '{"a": 1}', "DataError: {}: a .json file must be a list of rows", ["keys a", ".jsonl"]),
    ("deep.json", "[" * 20000, "DataError: {}:1: broken JSON at column ", ["nested too deeply"]),
    ("list.jsonl", json.dumps([GOOD]), "DataError: {}:1: a row must be an object", ["rename it to .json"]),
    ("pretty.jsonl", json.dumps([GOOD], indent=1), "DataError: {}:1: broken JSON", ["rename it to .json"]),
    ("utf16.jsonl", lines(GOOD).encode("utf-16"), "DataError: {}:1: not UTF-8", ["iconv -f utf-16"]),
    ("numbers.jsonl", "1\n2\n", "DataError: {}:1: a row must be an object", []),
    ("latin.jsonl", lines(GOOD).encode() + b'{"instruction": "caf\xe9", "output": "b"}\n', "DataError: {}:2: not UTF-8", ["byte 0xe9", "iconv"]),
    ("half.json.gz", gzip.compress(lines(*[GOOD] * 50).encode())[:40], "DataError: {}: not a whole gzip file", ["gzip -t"]),
    ("fake.jsonl.gz", lines(GOOD), "DataError: {}: not a whole gzip file", []),
    ("cells.csv", "instruction,output\na,b\na,b,c\n", "DataError: {}:3: the row does not have the header's columns", ["3 values", "2: instruction output"]),
    ("same.csv", "instruction,output,output\na,b,c\n", "DataError: {}:1: two columns have the same name", ["given    output"]),
    ("quote.csv", 'instruction,output\n"a"x,b\n', "DataError: {}:2: broken CSV", []),
    ("fake.parquet", "PAR1 this is none", "DataError: {}: not a readable parquet file", []),
    ("rows.xlsx", "x", "DataError: {}: cannot tell what kind of file this is", ["'.xlsx'", ".jsonl"]),
    ("columns.jsonl", lines({"instructon": "a", "anser": "b"}), "DataError: {}: no format recognises these columns", ["instructon anser", "'instructon' to 'instruction'"]),
    ("no_output.jsonl", lines({"instruction": "a", "outptu": "b"}), "DataError: {}:1: the row has no column 'output'", ["rename the column 'outptu' to 'output'"]),
    ("pairs.jsonl", lines({"chosen": "Human: a Assistant: b", "rejected": "c"}), "DataError: {}:1: there is no prompt that 'chosen' answers", ["context"]),
    ("differ.jsonl", lines({"prompt": "x", "chosen": CHAT, "rejected": CHAT}), "DataError: {}:1: the prompt and the chosen conversation differ", ["'hi'"]),
    ("bad_one.jsonl", lines({"prompt": "a", "completion": "b", "label": False}), "DataError: {}:1: the completion is marked as a bad one", []),
    ("call.jsonl", lines({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f(1)"}]}), "DataError: {}:1: turn 1 (function_call): broken JSON", ["f(1)"]),
    ("answer.jsonl", lines({"messages": [CHAT[0], {"role": "tool", "tool_call_id": "c1", "content": "3"}, CHAT[1]]}), "DataError: {}:1: message 1 answers a call that is not there", ["'c1'"]),
    ("nameless.jsonl", lines({"messages": CHAT, "tools": [{"type": "function"}]}), "DataError: {}:1: column 'tools' is no function with a name", []),
    ("tools.jsonl", lines({"messages": CHAT, "tools": [{"name": "look_up"}]}), "TemplateError: {}:1: the template leaves out the tools", ["look_up"]),
    ("hole.jsonl", lines(GOOD, {"instruction": "a", "output": "  "}), "DataError: {}:2: column 'output' is empty", ["data.bad_rows=skip"]),
    ("number.jsonl", lines(GOOD, {"instruction": "a", "output": 5}), "DataError: {}:2: column 'output' is not text", ["int: 5"]),
    ("null.jsonl", lines(GOOD, {"instruction": "a", "output": None}), "DataError: {}:2: column 'output' is not text", ["null"]),
    ("role.jsonl", lines({"messages": [{"role": "usr", "content": "a"}, CHAT[1]]}), "DataError: {}:1: message 0 has an unknown role", ["'usr'", "try      user"]),
    ("turns.jsonl", lines({"messages": []}), "DataError: {}:1: 'messages' must be a list of turns", []),
    ("no_reply.jsonl", lines({"messages": CHAT[:1]}), "DataError: {}:1: there is no assistant message", ["roles user"]),
    ("picture.jsonl", lines({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, CHAT[1]]}), "DataError: {}:1: message 0 has a part that is not text", []),
    ("order.jsonl", lines({"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}, {"from": "gpt", "value": "c"}]}), "DataError: {}:1: ", ["user"]),
    ("surrogate.jsonl", '{"instruction": "\\ud83d", "output": "b"}\n', "DataError: {}:1: ", []),
    ("untrained.jsonl", lines({"messages": [CHAT[0], {**CHAT[1], "trained": False}]}), "DataError: {}:1: no token of this conversation is learned", ["data.bad_rows=skip"]),
    ("weight.jsonl", lines({"messages": [CHAT[0], {**CHAT[1], "weight": -1}]}), "DataError: {}:1: message 1 has a 'weight'", ["-1"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "error", "facts"), FILES, ids=[case[0] for case in FILES])
def test_files(place: Place, write: Write, name: str, content: str | bytes, error: str, facts: list[str]) -> None:
    path = write(name, content)
    place.recipe(data={"train": [name]})
    place.refused(TRAIN, error.format(path), *facts)


def test_a_missing_file(place: Place) -> None:
    place.recipe(data={"train": ["tiny.json"]})
    place.refused(
        TRAIN,
        "DataError: tiny.json: no such file",
        place.line("tiny.json"),
        "ending in .json .jsonl",
        "try      tiny.jsonl",
    )


def test_a_folder_without_data(place: Place) -> None:
    (place.folder / "data").mkdir()
    place.recipe(data={"train": ["data"]})
    place.refused(TRAIN, f"DataError: {place.folder}/data: there are no data files in this folder", "an empty folder")


def test_a_folder_without_the_split(place: Place, write: Write) -> None:
    (place.folder / "data").mkdir()
    write("data/test.jsonl", lines(GOOD))
    place.recipe(data={"train": ["data"]})
    place.refused(TRAIN, f"DataError: {place.folder}/data: has no files of the split 'train'", "split: test")


def test_the_second_of_two_files(place: Place, write: Write) -> None:
    write("second.jsonl", lines({"messages": CHAT}, "{"))
    place.recipe(data={"train": ["tiny.jsonl", "second.jsonl"]})
    place.refused(TRAIN, f"DataError: {place.folder}/second.jsonl:2: broken JSON")


def test_a_validation_file(place: Place, write: Write) -> None:
    write("held.jsonl", lines({"messages": CHAT}, {"messages": "hi"}))
    place.recipe(data={"validation": ["held.jsonl"]})
    place.refused(TRAIN, f"DataError: {place.folder}/held.jsonl:2: 'messages' must be a list of turns")


def test_a_stride_as_long_as_a_window(place: Place, write: Write) -> None:
    write("book.md", "word " * 900)
    place.recipe(data={"train": ["book.md"], "format": {"kind": "text", "stride": 64}, "max_length": 64})
    place.refused(TRAIN, "DataError: data.format.stride: a window would have room for nothing", "stride 64")


def test_pairs_of_pairs(place: Place) -> None:
    place.recipe(data={"format": {"kind": "preference", "context": "preference"}})
    place.refused(TRAIN, "RecipeError: data.format.context: cannot be 'preference' again", "sharegpt")


def test_a_format_that_does_not_fit(place: Place) -> None:
    place.recipe(data={"format": "alpaca"})
    place.refused(
        TRAIN, f"DataError: {place.folder}/tiny.jsonl:1: the row has no column 'instruction'", "columns messages"
    )


def test_every_conversation_dropped(place: Place) -> None:
    place.recipe(data={"max_length": 16, "truncation": "drop"})
    place.refused(
        TRAIN,
        "DataError: ",
        "tiny.jsonl: no row is left to learn from",
        "longer than max_length",
        "data.truncation=keep_reply",
    )


def test_a_role_the_template_cannot_say(place: Place, write: Write) -> None:
    write("tool.jsonl", lines({"messages": [CHAT[0], {"role": "tool", "content": "5"}, CHAT[1]]}))
    place.recipe(data={"train": ["tool.jsonl"], "template": "alpaca"})
    place.refused(TRAIN, "TemplateError: ", "tool")


def test_data_show_and_predict_read_with_the_same_care(place: Place, write: Write) -> None:
    write("broken.jsonl", lines({"messages": CHAT}, "{"))
    place.recipe(data={"train": ["broken.jsonl"]})
    place.refused("data show recipe.yaml", f"DataError: {place.folder}/broken.jsonl:2: broken JSON")
    place.refused(
        ["predict", str(place.model), "broken.jsonl", "-o", "out.jsonl"], "DataError: broken.jsonl:2: broken JSON"
    )


def test_bad_rows_are_skipped_on_request(place: Place, write: Write) -> None:
    write("holes.jsonl", lines(*[{"messages": CHAT}] * 4, {"messages": [{"role": "usr", "content": "a"}]}, GOOD))
    place.recipe(data={"train": ["holes.jsonl"], "bad_rows": "skip", "validation": "-"}, evaluate="-")
    assert "2 left out (cannot be used)" in place.ok(*TRAIN.split()).err


def test_in_a_process_of_its_own(place: Place, write: Write) -> None:
    path = write("broken.jsonl", lines({"messages": CHAT}, '{"messages": [}'))
    place.recipe(data={"train": ["broken.jsonl"]})
    said = place.refused(TRAIN, f"DataError: {path}:2: broken JSON at column 15", process=True)
    assert len(said.splitlines()) == 3
