"""Many rows at once give what one row after the other gives: the same bytes, the same errors, in the same order."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.templates.families import bind, family
from data.templates.test_published import KINDS as PUBLISHED
from lorikeet.base.errors import DataError, LorikeetError
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data import workers
from lorikeet.data.formats.alpaca import Alpaca
from lorikeet.data.formats.messages import Messages
from lorikeet.data.loss import LossOptions
from lorikeet.data.many import Coder, Done
from lorikeet.data.pipeline import DataOptions, Prepared, prepare
from lorikeet.data.shapes import Plans
from lorikeet.data.truncate import Encoder
from lorikeet.data.workers import in_order

ORIGIN = Origin("f.jsonl", 0, 1)


def alone(encoder: Encoder, conversation: Conversation) -> list[tuple[bytes, bytes]] | str:
    """What the long way gives: one conversation, one layout after the other."""
    pieces, error = encoder.usable(conversation)
    if error is not None:
        return str(error)
    return [(one.tokens.tobytes(), one.weights.tobytes()) for one in pieces if one.dropped is None]


def seen(done: Done) -> list[tuple[bytes, bytes]] | str:
    return str(done.error) if done.error is not None else [(tokens, weights) for tokens, weights, _ in done.examples]


WORDS = st.text(max_size=6) | st.sampled_from(
    [" ", "\n", " a ", "</s>", "<|im_end|>", "Thought: x", "<think>\nt\n</think>\n\nb", "a\n\nb", "{", "\uf8d00\uf8d1"]
)
ROLES = st.lists(st.sampled_from(["user", "assistant"]), max_size=2)
TALKS = st.tuples(
    st.sampled_from([[], ["system"]]), st.integers(1, 3), ROLES, st.lists(WORDS, min_size=12, max_size=12)
)
POLICIES = [{}, {"loss": "all"}, {"loss": "last_reply"}, {"loss": "replies+structure"}, {"role_weights": {"user": 0.5}}]


@pytest.mark.parametrize("name", PUBLISHED)
@given(talks=st.lists(TALKS, min_size=1, max_size=4), policy=st.sampled_from(POLICIES), through=st.booleans())
@settings(max_examples=12, deadline=None)
def test_chunks_give_what_rows_alone_give(name: str, talks: list, policy: dict, through: bool) -> None:
    kind, options, where = PUBLISHED[name]
    tokenizer = family(where, name)
    template = bind("jinja", tokenizer) if through else bind(kind, tokenizer, **options)
    encoder = Encoder(template, tokenizer, LossOptions(**policy), 300, "keep_reply")
    rows = []
    for first, pairs, more, words in talks:
        roles = [*first, *["user", "assistant"] * pairs, *more]
        turns = [{"role": role, "content": text} for role, text in zip(roles, words)]
        rows.append(({"messages": turns}, ORIGIN))
    for (row, origin), done in zip(rows, Coder(encoder).rows(rows, Messages()), strict=True):
        try:
            expected = alone(encoder, Messages().read(row, origin))
        except DataError as error:
            expected = str(error)
        assert seen(done) == expected


@pytest.mark.parametrize("kind", ["alpaca", "alpaca_short", "chatml", "llama2", "vicuna", "raw", "sharegpt"])
@given(rows=st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_alpaca_rows_with_inputs(kind: str, rows: list) -> None:
    tokenizer = family("llama2")
    encoder = Encoder(bind(kind, tokenizer), tokenizer, LossOptions(), 120, "keep_reply")
    listed = [({"instruction": a, "input": b, "output": c}, ORIGIN) for a, b, c in rows]
    for (row, origin), done in zip(listed, Coder(encoder).rows(listed, Alpaca()), strict=True):
        try:
            expected = alone(encoder, Alpaca().read(row, origin))
        except DataError as error:
            expected = str(error)
        assert seen(done) == expected


def test_most_conversations_have_a_plan() -> None:
    talk = Conversation(tuple(Message(role, "x") for role in ("system", "user", "assistant", "user", "assistant")))
    without = {
        name
        for name, (kind, options, where) in PUBLISHED.items()
        if Plans(bind(kind, family(where, name), **options), family(where, name), LossOptions()).of(talk) is None
    }
    # their prompts change from reply to reply, or they look for thoughts
    assert without <= {"mistral_v3", "mistral_tekken", "qwen3", "deepseek_r1"}
    jinja = {"chatml", "llama3", "gemma3", "qwen2_5", "zephyr", "phi3", "deepseek_llm"}
    for name in jinja:
        tokenizer = family(PUBLISHED[name][2], name)
        assert Plans(bind("jinja", tokenizer), tokenizer, LossOptions()).of(talk) is not None, name


# templates that a hole must not pass by: what they write depends on the text
NOSY = [
    "{% for m in messages %}{% if 'x' in m.content %}!{% endif %}<s>{{ m.content }}</s>{% endfor %}",
    "{% for m in messages %}{% if m.content == 'x' %}!{% endif %}<s>{{ m.content }}</s>{% endfor %}",
    "{% for m in messages %}{% if m.content|length > 1 %}!{% endif %}<s>{{ m.content }}</s>{% endfor %}",
    "{% for m in messages %}{% if m.content in 'xyz' %}!{% endif %}<s>{{ m.content }}</s>{% endfor %}",
    "{% for m in messages %}{% if 'xyz'.startswith(m.content) %}!{% endif %}<s>{{ m.content }}</s>{% endfor %}",
    "{% macro w(t) %}{{ t }}{% endmacro %}{% for m in messages %}{% set c = w(m.content) %}"
    "{% if 'x' in c %}!{% endif %}<s>{{ c }}</s>{% endfor %}",
    "{% for m in messages %}{% set c = '' ~ m.content %}{% if 'x' in c %}!{% endif %}<s>{{ c }}</s>{% endfor %}",
    "{% for m in messages %}{% set c %}{{ m.content }}{% endset %}{% if 'x' in c %}!{% endif %}<s>{{ c }}</s>"
    "{% endfor %}",
    "{% for m in messages %}{% set c = ''.join([m.content]) %}{% if 'x' in c %}!{% endif %}<s>{{ c }}</s>{% endfor %}",
    "{% for m in messages %}{% if (m|tojson)|length > 40 %}!{% endif %}<s>{{ m.content }}</s>{% endfor %}",
    "{% for m in messages %}{% if '%s' % (m.content,) == 'x' %}!{% endif %}<s>{{ m.content }}</s>{% endfor %}",
    "{% for m in messages %}{% if m.content|int == 0 %}!{% endif %}<s>{{ m.content }}</s>{% endfor %}",
    "{% for m in messages %}{% if m.content[0] == 'x' %}!{% endif %}<s>{{ m.content }}</s>{% endfor %}",
]


@pytest.mark.parametrize("source", NOSY)
def test_a_template_that_looks_into_texts_has_no_plan(source: str) -> None:
    tokenizer = family("llama2")
    template = bind("jinja", tokenizer, source=source)
    encoder = Encoder(template, tokenizer, LossOptions(), 100, "drop")
    assert Plans(template, tokenizer, LossOptions()).of(Conversation((Message("user", "x"),))) is None
    rows = [({"instruction": text, "output": "x"}, ORIGIN) for text in ("x", "y", "7")]
    done = Coder(encoder).rows(rows, Alpaca())
    assert [seen(one) for one in done] == [alone(encoder, Alpaca().read(row, ORIGIN)) for row, _ in rows]


def write(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepared(file: str, **options: object) -> Prepared:
    tokenizer = family("llama2")
    asked = DataOptions(train=[file], validation=None, cache=False, template="vicuna", max_length=300, **options)
    return prepare(asked, tokenizer, asked.template.bind(tokenizer), seed=0)


def test_processes_give_the_same_store(tmp_path: Path, cache: Path) -> None:
    rows = [{"instruction": f"ask {i} " * (i % 60), "output": f"say {i}"} for i in range(1, 1500)]
    file = write(tmp_path / "rows.jsonl", rows)
    one, three = prepared(file, workers=1, bad_rows="skip"), prepared(file, workers=3, bad_rows="skip")
    assert one.counts == three.counts and one.counts.cut > 0 and one.counts.rows == 1499
    assert one.train.fingerprint == three.train.fingerprint
    assert [one.train[i].origin for i in (0, -1)] == [three.train[i].origin for i in (0, -1)]
    assert np.array_equal(one.train.conversation_hashes, three.train.conversation_hashes)
    assert len(prepared(file, workers=2, bad_rows="skip", max_examples=120).train) <= 300


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_bad_row_is_the_one_told(tmp_path: Path, cache: Path, workers: int) -> None:
    rows: list = [{"instruction": "a", "output": "b"} for _ in range(1200)]
    rows[700], rows[900] = {"instruction": 5, "output": "b"}, {"instruction": "", "output": "b"}
    file = write(tmp_path / "rows.jsonl", rows)
    with Path(file).open("a") as more:
        more.write("{broken\n")
    with pytest.raises(DataError, match=r"rows.jsonl:701: column 'instruction' is not text"):
        prepared(file, workers=workers)
    with pytest.raises(DataError, match=r"rows.jsonl:1201: broken JSON"):
        prepared(file, workers=workers, bad_rows="skip")


def test_a_process_that_is_ended_is_told() -> None:
    def work(number: int) -> int:
        if number == 5:
            os._exit(9)
        return number

    with pytest.raises(DataError, match="ended from outside"):
        list(in_order(range(100), work, 2))


def test_a_fault_of_ours_in_a_process_shows_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(in_order([1, 0, 1], lambda number: 1 // number, 2))


def test_results_come_in_order_and_processes_end() -> None:
    found = in_order(range(50), lambda number: (number, os.getpid()), 3)
    first = next(found)
    assert first[0] == 0 and first[1] != os.getpid()
    rest = list(found)
    assert [number for number, _ in rest] == list(range(1, 50)) and len({pid for _, pid in rest}) == 3
    for _, pid in rest[:3]:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_errors_keep_their_parts_between_processes() -> None:
    def work(_: int) -> LorikeetError:
        return DataError("what", given=ValueError("v"), allowed="a", try_="t")

    (error, *_) = in_order([1, 2], work, 2)
    assert str(error) == "DataError: what\n  given    v\n  allowed  a\n  try      t"


def test_workers_out_of_range(tmp_path: Path) -> None:
    for wrong in (0, -1, 65, "many"):
        with pytest.raises(ValueError):
            DataOptions(train=["x.json"], workers=wrong)
    assert workers.default_workers() >= 1
