from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from lorikeet.base.errors import DataError, TemplateError
from lorikeet.data import rows as rows_module
from lorikeet.data.dataset import Examples
from lorikeet.data.encode import encode_conversation
from lorikeet.data.formats.auto import Auto
from lorikeet.data.pipeline import DataOptions, Prepared, prepare
from lorikeet.data.rows import conversations

pytestmark = pytest.mark.usefixtures("cache")


def rows(count: int, start: int = 0) -> list[dict]:
    return [
        {"instruction": f"say {number}", "input": "", "output": f"it is {number}"}
        for number in range(start, start + count)
    ]


@pytest.fixture
def train(tmp_path: Path) -> str:
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows(40)))
    return str(path)


def run(tokenizer, train: str | list[str], *, seed: int = 0, **options) -> Prepared:
    chosen = DataOptions(train=train, **options)
    return prepare(chosen, tokenizer, chosen.template.bind(tokenizer), seed=seed)


def ids(examples: Examples | None) -> list[tuple[int, ...]]:
    assert examples is not None
    return [tuple(example.tokens.tolist()) for example in examples]


def test_examples_are_what_encoding_gives(tokenizer, train: str) -> None:
    prepared = run(tokenizer, train)
    options = DataOptions(train=train)
    template = options.template.bind(tokenizer)
    expected = [encode_conversation(one, template, tokenizer, options)[0] for one in conversations([train], Auto())]
    assert len(prepared.train) == 40 == len(expected) and prepared.validation is None
    for number, (example, (_, tokens, weights)) in enumerate(zip(prepared.train, expected)):
        assert example.tokens.tolist() == tokens.tolist() and example.weights.tolist() == weights.tolist()
        assert example.tokens.dtype == np.int32 and example.weights.dtype == np.float32
        assert str(example.origin) == f"{train}:{number + 1}"
    assert prepared.train.lengths.tolist() == [len(tokens) for _, tokens, _ in expected]
    assert prepared.counts.rows == prepared.counts.kept == prepared.counts.examples == 40
    assert prepared.counts.tokens == prepared.train.tokens == sum(prepared.train.lengths)
    assert prepared.counts.trained_tokens == prepared.train.trained_tokens
    stored = json.loads((prepared.train.folder / "counts.json").read_text())
    assert stored == prepared.counts.as_dict()


def test_the_cache_is_used_until_something_changes(tokenizer, train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tokenizer, train).train
    with monkeypatch.context() as patch:
        patch.setattr(rows_module, "_write", lambda *_: pytest.fail("prepared again"))
        again = run(tokenizer, train).train
        assert again.fingerprint == first.fingerprint and ids(again) == ids(first)
        run(tokenizer, train, validation=0.1, seed=3)  # the split is a view
        with pytest.raises(pytest.fail.Exception):
            run(tokenizer, train, cache=False)
    changed = [
        {"max_length": 64},
        {"loss": "all"},
        {"role_weights": {"user": 0.1}},
        {"template": "vicuna"},
        {"format": {"kind": "columns", "prompt": "instruction", "response": "output"}},
        {"truncation": "cut"},
        {"max_examples": 7},
        {"bad_rows": "skip"},
    ]
    folders = {run(tokenizer, train, **change).train.folder for change in changed} | {first.folder}
    assert len(folders) == len(changed) + 1
    Path(train).write_text(Path(train).read_text().replace("it is 3", "it was 3"))
    assert run(tokenizer, train).train.folder not in folders


OWN_TEMPLATE = """
from lorikeet.data.templates.chatml import ChatML as Theirs
class Mine(Theirs):
    kind: str = "mine"
"""
OWN_FORMAT = """
from lorikeet.data.formats.alpaca import Alpaca
class Mine(Alpaca):
    kind: str = "mine"
"""


@pytest.mark.parametrize("place", ["template", "format", "context"])
def test_the_cache_knows_the_code_of_someones_own_kinds(tokenizer, place: str, train: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN_TEMPLATE if place == "template" else OWN_FORMAT)
    pairs = [{**row, "chosen": row["output"], "rejected": "no"} for row in rows(4)]
    if place == "context":
        Path(train).write_text("\n".join(json.dumps(row) for row in pairs))
    own = {"kind": str(file)}
    said = {"format": {"kind": "preference", "context": own}} if place == "context" else {place: own}
    first = run(tokenizer, train, **said).train
    assert run(tokenizer, train, **said).train.folder == first.folder
    file.write_text(file.read_text() + "# otherwise\n")
    assert run(tokenizer, train, **said).train.folder != first.folder


def test_validation_by_fraction_and_count(tokenizer, train: str) -> None:
    prepared = run(tokenizer, train, validation=0.25)
    everything = ids(run(tokenizer, train).train)
    assert len(prepared.train) == 30 and prepared.validation is not None and len(prepared.validation) == 10
    assert sorted(ids(prepared.train) + ids(prepared.validation)) == sorted(everything)
    assert ids(run(tokenizer, train, validation=0.25).validation) == ids(prepared.validation)
    assert ids(run(tokenizer, train, validation=0.25, seed=1).validation) != ids(prepared.validation)
    ten = run(tokenizer, train, validation=10)
    assert ids(ten.validation) == ids(prepared.validation)
    assert ten.train.fingerprint != run(tokenizer, train).train.fingerprint
    # the choice follows the conversations, not their places
    lines = Path(train).read_text().split("\n")
    Path(train).write_text("\n".join(reversed(lines)))
    assert sorted(ids(run(tokenizer, train, validation=10).validation)) == sorted(ids(prepared.validation))


def test_equal_rows_never_stand_on_both_sides(tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(rows(20) * 3))
    prepared = run(tokenizer, str(path), validation=5)
    assert prepared.validation is not None and len(prepared.validation) == 15
    assert not set(ids(prepared.train)) & set(ids(prepared.validation))


def test_validation_files_and_several_sources(tokenizer, train: str, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("question,answer\nq1,a1\nq2,a2\n")
    prepared = run(tokenizer, [train, str(other)], validation=str(other))
    assert len(prepared.train) == 42 and prepared.validation is not None and len(prepared.validation) == 2
    assert ids(prepared.validation) == ids(prepared.train)[-2:]
    assert prepared.validation_counts is not None and prepared.validation_counts.rows == 2
    assert prepared.train[41].origin is not None and prepared.train[41].origin.file == str(other)


def test_a_fault_leaves_nothing_half_written(tokenizer, train: str, cache: Path) -> None:
    with Path(train).open("a") as file:
        file.write('\n{"instruction": "x", "output": ""}')
    with pytest.raises(DataError, match=r"train\.jsonl:41: column 'output' is empty"):
        run(tokenizer, train)
    assert not list((cache / "lorikeet" / "examples").iterdir())
    prepared = run(tokenizer, train, bad_rows="skip")
    assert prepared.counts.dropped == {"cannot be used": 1} and prepared.counts.rows == 41 and len(prepared.train) == 40


def test_untrained_conversations_are_refused_before_truncation_and_counted_after(tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "trained": False}]
    path.write_text(json.dumps([{"messages": chat}]))
    with pytest.raises(DataError, match=r"x\.json row 0: no token of this conversation"):
        run(tokenizer, str(path))
    long = {"instruction": "x y z " * 60, "output": "a"}
    path.write_text(json.dumps([*rows(2), long]))
    prepared = run(tokenizer, str(path), max_length=64, truncation="cut")
    assert prepared.counts.dropped == {"no trained token within max_length": 1} and prepared.counts.kept == 2
    with pytest.raises(DataError, match="no row is left"):
        run(tokenizer, str(path), max_length=8, truncation="drop")
    path.write_text(json.dumps([{"messages": [{"role": "critic", "content": "q"}]}]))
    with pytest.raises(DataError, match="unknown role"):
        run(tokenizer, str(path))


def test_rows_a_template_cannot_say(tokenizer, make_tokenizer, templates, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"instruction": "q", "output": "a"}\n{"instruction": "q", "output": "a", "system": "s"}\n')
    inst = {"kind": "jinja", "source": templates["inst"]}
    with pytest.raises(TemplateError, match=r"x\.jsonl:2.*Only user and assistant"):
        run(tokenizer, str(path), template=inst)
    assert run(tokenizer, str(path), template=inst, bad_rows="skip").counts.kept == 1
    with pytest.raises(TemplateError, match="no chat template"):
        run(make_tokenizer(), str(path))


def test_validation_that_leaves_nothing(tokenizer, train: str) -> None:
    with pytest.raises(DataError, match="leaves nothing to train on"):
        run(tokenizer, train, validation=40)


@pytest.mark.parametrize(
    "options",
    [
        {"train": []},
        {"validation": 0},
        {"validation": 0.0},
        {"validation": -1},
        {"validation": 1.5},
        {"validation": True},
        {"max_length": 0},
        {"truncation": "middle"},
        {"loss": "answers"},
        {"role_weights": {"human": 1}},
        {"role_weights": {"user": -1}},
        {"max_examples": 0},
        {"maxlength": 3},
        {"template": {"kind": "chatml", "sistem": "x"}},
    ],
)
def test_bad_options_are_refused(options: dict) -> None:
    with pytest.raises(ValidationError):
        DataOptions(**{"train": ["x.json"], **options})


def test_options_read_from_plain_data_and_back() -> None:
    options = DataOptions(train="x.json", validation=1.0, format="sharegpt", template={"kind": "vicuna"})  # type: ignore[arg-type]
    assert options.train == ["x.json"] and options.validation == 1 and isinstance(options.validation, int)
    assert DataOptions.model_validate(options.model_dump()) == options
    assert "keep_reply" in json.dumps(DataOptions.model_json_schema())


def test_conversations_for_predict(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"instruction": "q"}\n{"instruction": "r", "output": "a"}\n{"instruction": 5}\n')
    with pytest.raises(DataError, match=":3"):
        list(conversations([str(path)], Auto(), reply=False))
    found = list(conversations([str(path)], Auto(), reply=False, bad_rows="skip"))
    assert [one.reference for one in found] == [None, "a"]
