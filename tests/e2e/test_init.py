"""`lorikeet init`: the recipe it writes trains as it stands, says why each line is so, and bad input is one message."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import Place
from lorikeet import config
from lorikeet.plan import first_recipe
from lorikeet.plan.choose import Machine
from lorikeet.plan.memory import GIB


@pytest.fixture(autouse=True)
def quick_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same machine in every test, and none that has to be timed."""
    machine = Machine("cpu", 8 * GIB, "float32", 4, 1e11, 1, 1)
    monkeypatch.setattr(first_recipe, "this_machine", lambda: machine)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # more threads than free cores make a tiny model crawl


def jsonl(place: Place, name: str, rows: list[Any]) -> str:
    (place.folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return name


def messages(*texts: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]


KINDS: dict[str, list[dict[str, Any]]] = {
    "alpaca": [
        {"instruction": f"Name the number after {n}.", "input": "", "output": f"The number after {n} is {n + 1}, so."}
        for n in range(24)
    ],
    "chat": [{"messages": messages("hello", f"The answer is {n}.", "Thank you", "and you")} for n in range(24)],
    "json": [{"prompt": f"Sort {n} 1.", "response": json.dumps({"n": n})} for n in range(24)],
    "preference": [
        {"prompt": f"Repeat: {n}", "chosen": f"{n} {n}", "rejected": "no"} for n in range(24)
    ],
    "documents": [{"text": f"Number {n}. " + "The colour is blue. " * 30} for n in range(24)],
    "few": [{"question": "What is blue?", "answer": "A colour."}, {"question": "hello", "answer": "hello"}],
}  # fmt: skip
PURPOSE = {"alpaca": "instruct", "chat": "chat", "json": "extract", "preference": "extract", "documents": "text"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_init_writes_trains_without_edits(place: Place, kind: str) -> None:
    data = jsonl(place, f"{kind}.jsonl", KINDS[kind])
    said = place.ok("init", "--model", place.model, "--data", data, "--output", "made.yaml", "--yes").out
    recipe = config.load(place.folder / "made.yaml")
    assert recipe.train.num_train_epochs >= 1 and recipe.data.max_length <= 512
    assert (recipe.data.validation is None) == (kind == "few")
    assert f"purpose   {PURPOSE.get(kind, '')}" in said
    assert "estimate" in said and "lorikeet train made.yaml" in said
    short = ["train.max_steps=2", "train.num_train_epochs=1", "generate.max_new_tokens=4"]
    place.ok("train", "made.yaml", *short)
    assert (place.folder / "runs" / kind / "adapter").is_dir()


def test_texts_from_conversations_are_learned_whole(place: Place) -> None:
    place.ok("init", "--model", place.model, "--data", "tiny.jsonl", "--yes", "--purpose", "text")
    recipe = config.load(place.folder / "recipe.yaml")
    assert (recipe.data.loss, recipe.adapter.r) == ("all", 32)
    place.ok("train", "recipe.yaml", "train.max_steps=1", "train.num_train_epochs=1", "generate.max_new_tokens=4")


def test_rows_beyond_the_sample_may_be_bad(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorikeet.plan.look.SAMPLE", 10)
    place.ok("init", "--model", place.model, "--data", "tiny.jsonl", "--yes")
    assert config.load(place.folder / "recipe.yaml").data.bad_rows == "skip"
    assert "10 rows were looked at" in (place.folder / "recipe.yaml").read_text()


def test_a_busy_machine_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Machine("cpu", 8 * GIB, "float32", 4, 1e11, 1, 2, 0.6)
    monkeypatch.setattr(first_recipe, "this_machine", lambda: busy)
    said = place.ok("init", "--model", place.model, "--data", "tiny.jsonl", "--yes").out
    assert "took 60% of the CPU" in " ".join(said.split())
    assert config.load(place.folder / "recipe.yaml").model.threads == 1  # of two cores, one may be used


def test_every_line_says_why(place: Place) -> None:
    place.ok("init", "--model", place.model, "--data", "tiny.jsonl", "--yes")
    lines = (place.folder / "recipe.yaml").read_text().splitlines()
    above = ""
    for line in lines:
        if line.strip() and not line.strip().startswith("#") and not line.endswith(":"):
            assert " # " in line or above.strip().startswith("#"), line
        assert len(line) <= 200
        above = line


def test_the_recipe_means_the_same_from_everywhere(place: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    place.ok("init", "--model", place.model, "--data", "tiny.jsonl", "--output", "below/recipe.yaml", "--yes")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    os.chdir(elsewhere)
    recipe = config.load(place.folder / "below" / "recipe.yaml")
    assert [Path(str(path)) for path in recipe.data.train] == [place.folder / "tiny.jsonl"]
    assert Path(recipe.model.path) == place.model


def test_a_run_of_the_same_name_is_left_alone(place: Place) -> None:
    (place.folder / "runs" / "tiny").mkdir(parents=True)
    place.ok("init", "--model", place.model, "--data", "tiny.jsonl", "--yes")
    assert config.load(place.folder / "recipe.yaml").output_dir == Path("runs/tiny-2")


def test_a_folder_with_a_split_of_its_own(place: Place) -> None:
    (place.folder / "set").mkdir()
    jsonl(place, "set/train.jsonl", KINDS["alpaca"])
    jsonl(place, "set/valid.jsonl", KINDS["alpaca"][:4])
    place.ok("init", "--model", place.model, "--data", "set", "--yes")
    assert config.load(place.folder / "recipe.yaml").data.validation == "auto"


def test_placeholders_are_noticed(place: Place) -> None:
    rows = [{"instruction": f"Who are you? {n}", "output": "I am {{name}} of {{author}}."} for n in range(3)]
    said = place.ok("init", "--model", place.model, "--data", jsonl(place, "who.jsonl", rows), "--yes").out
    assert "! placeholders" in said and "{{name}} (3 rows)" in " ".join(said.split())


def test_rows_longer_than_the_context_are_told_and_train(place: Place) -> None:
    rows = [{"instruction": "blue " * 700 + str(n), "output": f"{n}"} for n in range(6)]
    said = place.ok("init", "--model", place.model, "--data", jsonl(place, "long.jsonl", rows), "--yes").out
    assert "longer than the model's context of 512" in " ".join(said.split())
    assert config.load(place.folder / "recipe.yaml").data.max_length == 512
    place.ok("train", "recipe.yaml", "train.max_steps=1", "train.num_train_epochs=1")


def test_rows_that_cannot_be_read_are_told_and_left_out(place: Place) -> None:
    rows = [*KINDS["alpaca"], {"instruction": "and then?"}]
    said = place.ok("init", "--model", place.model, "--data", jsonl(place, "bad.jsonl", rows), "--yes").out
    assert "1 of 25 rows cannot be read" in " ".join(said.split())
    assert config.load(place.folder / "recipe.yaml").data.bad_rows == "skip"
    place.ok("train", "recipe.yaml", "train.max_steps=1", "train.num_train_epochs=1", "generate.max_new_tokens=4")


def test_overwrite_replaces(place: Place) -> None:
    (place.folder / "recipe.yaml").write_text("mine: true\n")
    place.ok("init", "--model", place.model, "--data", "tiny.jsonl", "--yes", "--overwrite")
    assert "mine" not in (place.folder / "recipe.yaml").read_text()


class Terminal:
    """Standard input that is one, with a person's answers."""

    def __init__(self, *answers: str):
        self.lines = [answer + "\n" for answer in answers]

    def isatty(self) -> bool:
        return True

    def readline(self, _size: int = -1) -> str:
        return self.lines.pop(0)


def test_it_asks_at_a_terminal(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Terminal("tiny.jsonl", str(place.model), "asked.yaml", "chatt", "chat")  # one purpose is misspelt
    monkeypatch.setattr(sys, "stdin", answers)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    result = place.ok("init")
    assert answers.lines == []
    assert "there is no 'chatt'" in result.err
    assert "for chat" in (place.folder / "asked.yaml").read_text()


INIT = "init --model {model} --yes"
BAD = [
    ("--data tiny.jsonl --purpose chta", "RecipeError: --purpose: there is no 'chta'", "--purpose chat"),
    ("", "RecipeError: --data: not given", "--data mine.jsonl"),
    ("--data gone.jsonl", "DataError: gone.jsonl: no such file", "a file ending in"),
    ("--data tiny.jsnl", "DataError: tiny.jsnl: no such file", "tiny.jsonl"),
    ("--data empty.jsonl", "DataError: empty.jsonl: the file is empty", "0 bytes"),
    ("--data broken.jsonl", "DataError: broken.jsonl:1: broken JSON", "one object a line"),
    ("--data latin.txt", "DataError: latin.txt:1: not UTF-8", "iconv"),
    ("--data odd.jsonl", "DataError: odd.jsonl: no format recognises", "columns colour size"),
    ("--data mute.jsonl", "DataError: mute.jsonl:1", ""),
    ("--data book.md --purpose chat", "RecipeError: --purpose: chat needs replies", "--purpose text"),
    ("--data tiny.jsonl --data tiny.jsonl", "RecipeError:", "a file is read twice"),
    ("--data tiny.jsonl --output there.yaml", "OutputError: there.yaml exists already", "--overwrite"),
    ("--data tiny.jsonl --output folder.yaml", "OutputError: --output: folder.yaml is a folder", "recipe.yaml"),
    ("--data tiny.jsonl --output recipe.json", "OutputError: --output: recipe.json is no name", "recipe.yaml"),
    ("--data tiny.jsonl --output there.yaml/r.yaml", "OutputError: there.yaml cannot be written to", "is a file"),
    ("--data tiny.jsonl --model gone/model/x", "CheckpointError: no model", "smollm2-135m"),
    ("--data tiny.jsonl --model tiny.jsonl", "CheckpointError: 'tiny.jsonl' is not a model", ".gguf"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "error", "fact"), BAD, ids=[words or "nothing" for words, *_ in BAD])
def test_bad_input(place: Place, words: str, error: str, fact: str) -> None:
    files: dict[str, bytes] = {
        "empty.jsonl": b"", "broken.jsonl": b"{]\n", "latin.txt": b"caf\xe9\n",
        "odd.jsonl": b'{"colour": 1, "size": 2}\n',
        "mute.jsonl": b'{"instruction": "a", "output": ""}\n', "book.md": b"Blue. " * 50, "there.yaml": b"mine: true\n",
    }  # fmt: skip
    for name, content in files.items():
        (place.folder / name).write_bytes(content)
    (place.folder / "folder.yaml").mkdir()
    asked = words.split()
    model = [] if "--model" in asked else ["--model", str(place.model)]
    place.refused(["init", "--yes", *model, *asked], error, *([fact] if fact else []))


def test_without_a_terminal_nothing_is_asked(place: Place) -> None:
    place.refused(["init", "--model", str(place.model)], "RecipeError: --data: not given", "no terminal")


def test_a_model_larger_than_memory_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    tight = Machine("cpu", GIB // 2, "float32", 4, 1e11, 1, 1)
    monkeypatch.setattr(first_recipe, "this_machine", lambda: tight)
    words = ["init", "--model", str(place.model), "--data", "tiny.jsonl", "--yes"]
    place.refused(words, "ModelError:", "0.5 GiB free", "docs/models.md")


def test_a_read_only_folder_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.folder / "locked").mkdir()
    monkeypatch.setattr("lorikeet.base.files.os.access", lambda *_: False)  # root may write everywhere
    words = ["init", "--model", str(place.model), "--data", "tiny.jsonl", "--output", "locked/recipe.yaml", "--yes"]
    place.refused(words, "OutputError: locked cannot be written to")


@pytest.mark.parametrize(("kind", "rate"), [("full", 4e-5), ("prefix", 2e-2), ("ia3", 1.6e-2)])
def test_another_kind_of_adapter(place: Place, kind: str, rate: float) -> None:
    """Its memory is counted from what it trains in this very model, and what is written trains."""
    data = jsonl(place, "rows.jsonl", KINDS["alpaca"])
    asked = ("init", "--model", place.model, "--data", data, "--adapter", kind, "--output", "made.yaml", "--yes")
    place.ok(*asked)
    recipe = config.load(place.folder / "made.yaml", ["train.max_steps=2", f"output_dir=run-{kind}"])
    assert recipe.adapter.kind == kind and recipe.train.learning_rate == pytest.approx(rate)
    place.ok("train", place.folder / "made.yaml", "train.max_steps=2", f"output_dir=run-{kind}")


@pytest.mark.parametrize(
    ("kind", "said"),
    [("qlora", "--adapter: there is no 'qlora'"), ("bias", "the model has no biases that could train")],
)
def test_a_kind_that_cannot_be(place: Place, kind: str, said: str) -> None:
    data = jsonl(place, "rows.jsonl", KINDS["alpaca"])
    found = place.run("init", "-m", place.model, "-d", data, "--adapter", kind, "-o", "made.yaml", "-y")
    assert found.code == 2 and said in found.err and not (place.folder / "made.yaml").exists()
