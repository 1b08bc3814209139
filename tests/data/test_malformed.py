# ruff: noqa: E501  a table of cases is read by its rows
"""Malformed files through everything that reads data: preparing, data check, data ledger, data clean, data diff.

Each case is a file. `row`: its second row cannot be used, and both the rows beside it can. `file`: nothing of it can be
read, or not to its end. `fine`: it looks broken and is not. Whatever it is, nobody ever sees a traceback.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from data.conftest import TinyTokenizer
from data.templates.families import bind
from data.test_clean import balanced, cleaned
from lorikeet.base.errors import DataError, LorikeetError
from lorikeet.data import checking
from lorikeet.data.checks._contract import Setting
from lorikeet.data.diff import compare
from lorikeet.data.ledger import Totals, lines
from lorikeet.data.pipeline import DataOptions, prepare
from lorikeet.data.truncate import Encoder
from lorikeet.data.walk import walk

ASK, SAY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
HUMAN, GPT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}
GOOD: dict[str, dict[str, Any]] = {
    "messages": {"messages": [ASK, SAY]},
    "conversations": {"conversations": [HUMAN, GPT]},
    "instruction": {"instruction": "Name a colour.", "input": "", "output": "Blue."},
    "chosen": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "prompt": {"prompt": "q", "completion": "a"},
    "text": {"text": "A document of some words."},
}


def among(layout: str, bad: Any) -> bytes:
    """The bad row, or a line as it stands, between two good ones."""
    good = json.dumps(GOOD[layout]) + "\n"
    return (good + (bad if isinstance(bad, str) else json.dumps(bad)) + "\n" + good).encode("utf-8", "surrogatepass")


def calling(**call: Any) -> dict[str, Any]:
    return {"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [call]}, SAY]}


# name: (what becomes of it, layout, the second row)
ROWS: dict[str, tuple[str, str, Any]] = {
    "messages in a mapping": ("row", "messages", {"messages": {"user": "hi", "assistant": "hello"}}),
    "messages as JSON text": ("row", "messages", {"messages": json.dumps([ASK, SAY])}),
    "a list in the list": ("row", "messages", {"messages": [[ASK, SAY]]}),
    "content is a number": ("row", "messages", {"messages": [{**ASK, "content": 5}, SAY]}),
    "content is a mapping": ("row", "messages", {"messages": [{**ASK, "content": {"text": "hi"}}, SAY]}),
    "content is texts": ("row", "messages", {"messages": [{**ASK, "content": ["hi", "there"]}, SAY]}),
    "a part without text": ("row", "messages", {"messages": [{**ASK, "content": [{"type": "text"}]}, SAY]}),
    "a part of null": ("fine", "messages", {"messages": [{**ASK, "content": [{"type": "text", "text": None}]}, SAY]}),
    "a part that is a list": ("row", "messages", {"messages": [{**ASK, "content": [[{"type": "text", "text": "a"}]]}, SAY]}),
    "no role": ("row", "messages", {"messages": [{"content": "hi"}, SAY]}),
    "role is a number": ("row", "messages", {"messages": [{"role": 1, "content": "hi"}, SAY]}),
    "role is a list": ("row", "messages", {"messages": [{"role": ["user"], "content": "hi"}, SAY]}),
    "role is empty": ("row", "messages", {"messages": [{"role": "", "content": "hi"}, SAY]}),
    "no content": ("row", "messages", {"messages": [ASK, {"role": "assistant"}]}),
    "calls as text": ("row", "messages", {"messages": [ASK, {**SAY, "tool_calls": "look_up()"}]}),
    "calls of numbers": ("row", "messages", {"messages": [ASK, {**SAY, "tool_calls": [1, 2]}]}),
    "a call of nothing": ("row", "messages", calling()),
    "a call without a name": ("row", "messages", calling(function={"arguments": {}})),
    "a call of a number": ("row", "messages", calling(function={"name": 3, "arguments": {}})),
    "trained is text": ("row", "messages", {"messages": [ASK, {**SAY, "trained": "yes"}]}),
    "trained and not": ("row", "messages", {"messages": [ASK, {**SAY, "trained": True, "train": False}]}),
    "a weight of NaN": ("file", "messages", '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": NaN}]}'),
    "a weight without end": ("file", "messages", '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 1e999}]}'),
    "a weight as text": ("row", "messages", {"messages": [ASK, {**SAY, "weight": "1"}]}),
    "a weight that is true": ("row", "messages", {"messages": [ASK, {**SAY, "weight": True}]}),
    "tools as a word": ("row", "messages", {"messages": [ASK, SAY], "tools": "look_up"}),
    "tools as a number": ("row", "messages", {"messages": [ASK, SAY], "tools": 7}),
    "tools of words": ("row", "messages", {"messages": [ASK, SAY], "tools": ["look_up"]}),
    "tools without names": ("row", "messages", {"messages": [ASK, SAY], "tools": [{"description": "x"}]}),
    "only a system prompt": ("row", "messages", {"messages": [{"role": "system", "content": "s"}]}),
    "conversations is a mapping": ("row", "conversations", {"conversations": {"0": HUMAN, "1": GPT}}),
    "conversations as JSON text": ("row", "conversations", {"conversations": json.dumps([HUMAN, GPT])}),
    "value is a list": ("row", "conversations", {"conversations": [{"from": "human", "value": ["hi"]}, GPT]}),
    "value is missing": ("row", "conversations", {"conversations": [{"from": "human"}, GPT]}),
    "speaker is null": ("row", "conversations", {"conversations": [{"from": None, "value": "hi"}, GPT]}),
    "speaker is a mapping": ("row", "conversations", {"conversations": [{"from": {}, "value": "hi"}, GPT]}),
    "other keys half-way": ("row", "conversations", {"conversations": [HUMAN, {"speaker": "gpt", "said": "hello"}]}),
    "a result that comes first": ("row", "conversations", {"conversations": [{"from": "observation", "value": "5"}, GPT]}),
    "a call that is no JSON": ("row", "conversations", {"conversations": [HUMAN, {"from": "function_call", "value": ""}, GPT]}),
    "a list of nothing": ("row", "conversations", {"conversations": [None, None]}),
    "history as text": ("row", "instruction", {**GOOD["instruction"], "history": "q: a"}),
    "history of threes": ("row", "instruction", {**GOOD["instruction"], "history": [["q", "a", "b"]]}),
    "history of numbers": ("row", "instruction", {**GOOD["instruction"], "history": [[1, 2]]}),
    "history of nulls": ("row", "instruction", {**GOOD["instruction"], "history": [["q", None]]}),
    "system is a number": ("row", "instruction", {**GOOD["instruction"], "system": 3}),
    "input is a list": ("row", "instruction", {**GOOD["instruction"], "input": ["a"]}),
    "input is false": ("row", "instruction", {**GOOD["instruction"], "input": False}),
    "instruction is a list": ("row", "instruction", {**GOOD["instruction"], "instruction": ["a", "b"]}),
    "output is a mapping": ("row", "instruction", {**GOOD["instruction"], "output": {"text": "a"}}),
    "nothing is asked": ("row", "instruction", {**GOOD["instruction"], "instruction": "", "input": " "}),
    "another file's row": ("row", "instruction", GOOD["messages"]),
    "an empty row": ("row", "instruction", {}),
    "half an emoji": ("file", "instruction", '{"instruction": "\\ud83d", "input": "", "output": "a"}'),
    "chosen is null": ("row", "chosen", {**GOOD["chosen"], "chosen": None}),
    "chosen is a number": ("row", "chosen", {**GOOD["chosen"], "chosen": 5}),
    "chosen is empty": ("row", "chosen", {**GOOD["chosen"], "chosen": []}),
    "completion is null": ("row", "prompt", {**GOOD["prompt"], "completion": None}),
    "completion is a list of numbers": ("row", "prompt", {**GOOD["prompt"], "completion": [1]}),
    "prompt is a mapping": ("row", "prompt", {**GOOD["prompt"], "prompt": {"q": 1}}),
    "text is a list": ("row", "text", {"text": ["a", "b"]}),
    "text is blank": ("row", "text", {"text": " \n"}),
    "a key twice": ("fine", "instruction", '{"instruction": "a", "instruction": "b", "input": "", "output": "c"}'),
    "a key of half a character": ("file", "instruction", '{"instruction": "a", "input": "", "output": "c", "\\ud83d": 1}'),
    "an endless number beside": ("file", "instruction", '{"instruction": "a", "input": "", "output": "c", "score": 1e999}'),
    "a BOM within": ("fine", "instruction", '{"instruction": "\\ufeffa", "input": "", "output": "c"}'),
    "no row but null": ("file", "instruction", "null"),
    "no row but true": ("file", "instruction", "true"),
    "no row but text": ("file", "instruction", '"Name a colour."'),
    "no row but NaN": ("file", "instruction", "NaN"),
    "two rows on a line": ("file", "instruction", json.dumps(GOOD["instruction"]) * 2),
    "a comma behind the row": ("file", "instruction", json.dumps(GOOD["instruction"]) + ","),
    "single quotes": ("file", "instruction", "{'instruction': 'a', 'output': 'b'}"),
    "a comment": ("file", "instruction", "// the second row"),
    "a row over two lines": ("file", "instruction", '{"instruction": "a",\n"output": "b"}'),
    "a raw line end in a text": ("file", "instruction", '{"instruction": "a\nb", "output": "b"}'),
    "a raw tab in a text": ("file", "instruction", '{"instruction": "a\tb", "output": "b"}'),
    "a number of 5,000 digits": ("file", "instruction", '{"instruction": "a", "output": "b", "n": ' + "9" * 5000 + "}"),
    "nested too deeply": ("file", "instruction", '{"instruction": "a", "output": ' + "[" * 30_000 + "]" * 30_000 + "}"),
    "an escape that is none": ("file", "instruction", '{"instruction": "\\x41", "output": "b"}'),
    "half an escape": ("file", "instruction", '{"instruction": "\\u00", "output": "b"}'),
}  # fmt: skip

ROW = json.dumps(GOOD["instruction"])
# name: (what becomes of it, the file's name, its bytes)
FILES: dict[str, tuple[str, str, bytes]] = {
    "zeros": ("file", "zeros.jsonl", b"\x00" * 4096),
    "cut in a character": ("file", "cut.jsonl", f'{ROW}\n{{"instruction": "Zürich'.encode()[:-4]),
    "UTF-16 without a mark": ("file", "utf16.jsonl", ROW.encode("utf-16-be")),
    "UTF-32": ("file", "utf32.json", f"[{ROW}]".encode("utf-32")),
    "a BOM": ("fine", "bom.jsonl", f"{ROW}\n{ROW}\n{ROW}\n".encode("utf-8-sig")),
    "a BOM and a list": ("fine", "bom.json", f"[{ROW},{ROW},{ROW}]".encode("utf-8-sig")),
    "old line ends": ("file", "mac.jsonl", f"{ROW}\r{ROW}\r{ROW}\r".encode()),
    "Windows line ends": ("fine", "windows.jsonl", f"{ROW}\r\n{ROW}\r\n{ROW}\r\n".encode()),
    "a trailing comma": ("file", "comma.json", f"[{ROW},]".encode()),
    "two lists": ("file", "two.json", f"[{ROW}]\n[{ROW}]".encode()),
    "lists of lists": ("file", "lists.json", f"[[{ROW}], [{ROW}]]".encode()),
    "null among rows": ("file", "null.json", f"[{ROW}, null, {ROW}]".encode()),
    "a number": ("file", "number.json", b"42"),
    "a text": ("file", "text.json", b'"rows"'),
    "null": ("file", "nothing.json", b"null"),
    "a list that does not end": ("file", "open.json", f"[{ROW}, {ROW}".encode()),
    "rows by number": ("file", "mapping.json", f'{{"0": {ROW}, "1": {ROW}}}'.encode()),
    "garbage behind gzip": ("file", "tail.jsonl.gz", gzip.compress(f"{ROW}\n{ROW}\n".encode()) + b"and more"),
    "a checksum that is wrong": ("file", "sum.jsonl.gz", gzip.compress(f"{ROW}\n".encode())[:-8] + b"\0" * 8),
    "gzip of nothing": ("file", "none.jsonl.gz", gzip.compress(b"")),
    "gzip of gzip": ("file", "twice.jsonl.gz", gzip.compress(gzip.compress(f"{ROW}\n".encode()))),
    "a header alone": ("file", "head.csv", b"instruction,output\n"),
    "no header": ("file", "empty.csv", b""),
    "a column without a name": ("fine", "unnamed.csv", b",instruction,output\n0,a,b\n1,c,d\n2,e,f\n"),
    "a quote that stays open": ("file", "quote.csv", b'instruction,output\n"a,b\nc,d\n'),
    "a NUL in a table": ("fine", "nul.csv", b"instruction,output\na\x00,b\x00\nc,d\ne,f\n"),
    "a table in Latin-1": ("file", "latin.csv", "instruction,output\nZürich,Basel\n".encode("latin-1")),
    "other separators": ("file", "semicolons.csv", b"instruction;output\na;b\n"),
    "a cell that is long": ("fine", "big.csv", b"instruction,input,output\na,,b\nc," + b"d" * 140_000 + b",e\nf,,g\n"),
    "half a parquet file": ("file", "half.parquet", b"PAR1" + b"\x15\x00" * 200),
    "a parquet file of marks": ("file", "marks.parquet", b"PAR1\x00\x00\x00\x00PAR1"),
    "a program": ("file", "program.txt", b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 4),
    "spaces alone": ("file", "spaces.txt", b" \n\t\n \n"),
    "no words": ("file", "empty.md", b"\n"),
}  # fmt: skip
CASES = {name: (kind, "rows.jsonl", among(layout, bad)) for name, (kind, layout, bad) in ROWS.items()} | FILES


def test_there_are_enough_of_them() -> None:
    broken = [name for name, (kind, _, _) in CASES.items() if kind != "fine"]
    assert len(broken) >= 60 and len({content for _, _, content in CASES.values()}) == len(CASES)


def encoder_of(tokenizer: TinyTokenizer, options: DataOptions) -> Encoder:
    return Encoder(bind("jinja", tokenizer), tokenizer, options, options.max_length, options.truncation)


def written(folder: Path, name: str) -> tuple[str, DataOptions]:
    kind, file, content = CASES[name]
    (folder / file).write_bytes(content)
    return kind, DataOptions(train=[str(folder / file)], validation=None, cache=False, max_length=1024)


@pytest.mark.parametrize("name", CASES)
def test_preparing(name: str, tmp_path: Path, tokenizer: TinyTokenizer) -> None:
    kind, options = written(tmp_path, name)
    if kind == "fine":
        assert prepare(options, tokenizer, bind("jinja", tokenizer), seed=0).counts.kept == 3
        return
    with pytest.raises(LorikeetError) as caught:
        prepare(options, tokenizer, bind("jinja", tokenizer), seed=0)
    said = str(caught.value)
    assert CASES[name][1] in said and len(said.splitlines()) <= 4 and len(said) < 1600
    if kind == "row":
        assert ":2: " in said, "it says which row"
        left = options.model_copy(update={"bad_rows": "skip"})
        assert prepare(left, tokenizer, bind("jinja", tokenizer), seed=0).counts.kept == 2


@pytest.mark.parametrize("name", CASES)
def test_checking_and_accounting(name: str, tmp_path: Path, tokenizer: TinyTokenizer) -> None:
    kind, options = written(tmp_path, name)
    encoder = encoder_of(tokenizer, options)
    try:
        report = checking.run(walk(options, encoder, go_on=True), checking.chosen(), Setting(options, encoder))
    except DataError as error:  # a file of nothing
        assert kind == "file" and CASES[name][1] in str(error)
        return
    errors = {one.origin.row for check in report.checks for level, one in check.findings if level == "error"}
    assert errors == {1} if kind == "row" else bool(errors) == (kind == "file")
    assert all(str(one["what"]) for check in report.as_dict()["checks"].values() for one in check["findings"])
    list(checking.as_text(report, 5))
    json.dumps(report.as_dict())
    totals = Totals()
    try:
        for line in lines(walk(options, encoder), encoder):
            totals.add(line)
    except LorikeetError:
        assert kind == "file"
    assert totals.balance == 0


@pytest.mark.parametrize("name", CASES)
def test_cleaning_and_comparing(name: str, tmp_path: Path) -> None:
    kind, options = written(tmp_path, name)
    source, output = Path(str(options.train[0])), tmp_path / "clean.jsonl"
    good = tmp_path / "good.jsonl"
    good.write_text(f"{ROW}\n")
    try:
        report = cleaned([source], output, ["roles", "dedupe"])
        assert kind != "file"
        balanced(report, output, 3)
    except DataError as error:
        assert kind == "file" and source.name in str(error)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted({source.name, good.name})
    try:
        found = compare(good, source)
        assert kind == "file" or found.rows == (1, 3)  # rows may be there that no format knows
    except DataError as error:
        assert kind == "file" and source.name in str(error)
