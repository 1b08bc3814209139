"""What reading and encoding a set of rows finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorikeet.base.errors import DataError
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.plan import look as looking
from lorikeet.plan.look import look, read
from lorikeet.tokens._contract import Tokenizer
from lorikeet.tokens.open import open_tokenizer

Write = Callable[..., str]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return open_tokenizer(tiny_model, open_checkpoint(tiny_model))


@pytest.fixture(scope="module")
def plain_tokenizer(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Of a base model: no chat template."""
    model = make_model(tmp_path_factory.mktemp("models") / "base", chat_template=None)
    return open_tokenizer(model, open_checkpoint(model))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_(rows: list[Any], name: str = "data.jsonl") -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write_


def pair(question: str, answer: str) -> dict[str, str]:
    return {"instruction": question, "output": answer}


def test_rows_turns_and_placeholders_are_counted(write: Write) -> None:
    turns = [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "I am {{name}}."},
        {"role": "user", "content": "who made you?"}, {"role": "assistant", "content": "{{ author }} did"},
    ]  # fmt: skip
    found = read([write([{"messages": turns}, {"messages": turns[:2]}, {"messages": turns[:2]}])])
    assert (found.rows, found.read, found.turns, found.documents) == (3, 3, 1, 0)
    assert found.placeholders == {"{{name}}": 3, "{{ author }}": 1}
    assert len(found.hashes) == 2
    assert found.formats == ["messages"]


def test_lengths_are_those_of_whole_conversations(write: Write, tokenizer: Tokenizer) -> None:
    found = look([write([pair("a b", "c"), pair("a b " * 400, "c")])], tokenizer)
    short, long = sorted(found.lengths.tolist())
    assert long > short + 700  # not cut anywhere
    assert (found.trained > 0).all() and (found.trained < found.lengths).all()
    assert found.template == "jinja" and found.own_template
    assert len(found.reply_lengths) == 2


def test_json_replies_are_noticed(write: Write, tokenizer: Tokenizer) -> None:
    found = look([write([pair("a", '{"b": 1}'), pair("a", "[1]"), pair("a", "{no"), pair("a", "1")])], tokenizer)
    assert found.json_share == 0.5


def test_rows_that_cannot_be_read_are_counted(write: Write, tokenizer: Tokenizer) -> None:
    found = look([write([pair("a", "b"), {"instruction": "a"}, pair("c", "d")])], tokenizer)
    assert (found.rows.unreadable, found.rows.read) == (1, 2)
    assert found.rows.first_fault is not None and ":2" in found.rows.first_fault.what


def test_where_no_row_can_be_read_the_first_fault_is_raised(write: Write, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"data\.jsonl:1"):
        look([write([{"instruction": "a", "output": ""}, {"instruction": "a", "output": ""}])], tokenizer)


def test_a_base_model_gets_a_layout_it_can_learn(write: Write, plain_tokenizer: Tokenizer) -> None:
    single = look([write([pair("a", "b")] * 3)], plain_tokenizer)
    assert single.template in ("chatml", "alpaca")
    lengths = single.lengths
    assert (lengths > 4).all()


def test_a_template_that_cannot_say_the_rows_is_passed_over(
    write: Write, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """A model's own template that knows no system prompt, and rows that have one."""
    refuses = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    model = make_model(tmp_path / "model", chat_template=refuses)
    messages = [{"role": role, "content": "a"} for role in ("system", "user", "assistant")]
    found = look([write([{"messages": messages}])], open_tokenizer(model, open_checkpoint(model)))
    assert found.template != "jinja"
    assert "no system" in found.refused["jinja"]
    assert found.unusable == 0


def test_documents(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.md").write_text("What is blue? " * 300)
    found = look([str(tmp_path / "a.md")], tokenizer)
    assert found.documents
    assert found.lengths.max() > 600
    assert len(found.reply_lengths) == 0


def test_big_files_are_read_in_part(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write([pair(f"question {n:06}", "b" * 40) for n in range(12_000)])
    monkeypatch.setattr(looking, "MOST_ROWS", 8_000)
    monkeypatch.setattr(looking, "SAMPLE", 50)
    found = read([path])
    assert found.estimated and found.read == 8_000
    assert found.rows == pytest.approx(12_000, rel=0.5)  # the reader's blocks are coarse beside a file this small
    assert len(found.sample) == 50
    places = [conversation.origin.row for conversation in found.sample if conversation.origin]
    assert max(places) > 4_000  # not only the first


def test_several_files_and_folders(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name in ("train.jsonl", "valid.jsonl"):
        (tmp_path / name).write_text(json.dumps(pair("a", "b")) + "\n")
    assert look([str(tmp_path)], tokenizer).rows.rows == 1  # the held-out split is not learned from
