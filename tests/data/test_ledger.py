"""The ledger balances, and the characters it names are those that the trained tokens spell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.conftest import TEMPLATES, TinyTokenizer
from data.templates.families import PUBLISHED, bind, family
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.ledger import FATES, Totals, line_of, lines
from lorikeet.data.loss import LossOptions
from lorikeet.data.pipeline import DataOptions, prepare
from lorikeet.data.provenance import align, kept_characters
from lorikeet.data.templates._contract import Template
from lorikeet.data.truncate import Encoder
from lorikeet.data.walk import Walked, walk

KINDS = {
    "alpaca": "llama2", "alpaca_legacy": "llama2", "chatml": "qwen2", "gemma": "gemma", "llama2": "llama2",
    "llama3": "llama3_1", "mistral": "mistral_v3", "phi3": "phi3", "qwen": "qwen3", "deepseek": "deepseek_r1",
    "raw": "llama2", "react": "qwen2", "sharegpt": "llama2", "vicuna": "llama2", "zephyr": "llama2",
}  # fmt: skip
OWN = {"gemma3": "gemma", "llama3_1": "llama3_1", "mistral_v3": "mistral_v3", "phi3": "phi3", "qwen3": "qwen3"}


def template(name: str) -> Template:
    if name in KINDS:
        return bind(name, family(KINDS[name]))
    if name.removeprefix("own ") in TEMPLATES:
        return bind("jinja", TinyTokenizer(bos="<s>", chat_template=TEMPLATES[name.removeprefix("own ")]))
    return bind("jinja", family(OWN[name.removeprefix("published ")], name.removeprefix("published ")))


STYLES = [
    *KINDS,
    *(f"own {name}" for name in TEMPLATES),
    *(f"published {name}" for name in OWN if (PUBLISHED / f"{name}.jinja").is_file()),
]
WORDS = st.sampled_from(
    ["hello", "the answer is", " ", "\n", "  ", "é", "你好", "🦜", "<|im_end|>", "</s>", "\n\n", '"', "{"]
)
TEXT = st.lists(WORDS, min_size=0, max_size=9).map("".join)
THOUGHT = st.builds(lambda a, b: f"<think>\n{a}\n</think>\n\n{b}", TEXT, TEXT.filter(str.strip))
SAID = st.one_of(TEXT.filter(str.strip), THOUGHT)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    if draw(st.integers(0, 9)) == 0:
        return Conversation((Message("text", draw(TEXT.filter(str.strip)) * 5),), origin=Origin("f", 0))
    messages = [Message("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        extra = draw(st.one_of(st.none(), TEXT.filter(str.strip)))
        question = draw(TEXT.filter(str.strip))
        content = question if extra is None else f"{question}\n{extra}"
        messages.append(Message("user", content, context=extra))
        messages.append(Message("assistant", draw(SAID), trained=draw(st.sampled_from([None, None, None, False]))))
    return Conversation(tuple(messages), origin=Origin("f", 0))


def ledger_of(conversation: Conversation, encoder: Encoder) -> tuple[Walked, dict[str, Any]]:
    pieces, error = encoder.usable(conversation)
    row = Walked(Origin("f", 0), "train", {}, conversation, pieces, error)
    return row, line_of(row, encoder)


def subsequence(short: str, long: str) -> bool:
    rest = iter(long)
    return all(character in rest for character in short)


def named(entries: Sequence[Sequence[Any]], content: str) -> str:
    """The characters the entries of one message name, each once, in order."""
    shown = sorted({index for *_, start, end, _ in entries for index in range(start, end)})
    return "".join(content[index] for index in shown)


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=12, deadline=None)
@given(
    conversations(),
    st.sampled_from(["replies", "last_reply", "all", "replies+structure"]),
    st.sampled_from(["drop", "cut", "keep_reply"]),
    st.sampled_from([16, 40, 100, 1000]),
)
def test_the_ledger_balances_and_names_what_is_spelled(
    style: str, conversation: Conversation, loss: Any, truncation: Any, length: int
) -> None:
    made = template(style)
    encoder = Encoder(made, made.tokenizer, LossOptions(loss=loss), length, truncation)
    row, line = ledger_of(conversation, encoder)
    characters = line["characters"]
    assert characters["in"] == sum(characters[fate] for fate in FATES)
    assert sum(line["cut_by"].values()) == characters["cut"]
    for message, told in zip(conversation.messages, line["messages"]):
        assert len(message.content) == told["characters"] == sum(told[fate] for fate in FATES)
    kept = [] if row.error else [piece for piece in row.pieces if piece.dropped is None]
    assert len(kept) == len(line["examples"])
    assert ("rejected" in line) == (not kept)
    for piece, example in zip(kept, line["examples"]):
        weighted = np.flatnonzero(piece.weights).tolist()
        assert sorted({entry[0] for entry in example["trained"]}) == weighted
        for position, token, weight, *_ in example["trained"]:
            assert (piece.tokens[position], piece.weights[position]) == (token, weight)
        spelled = [entry for entry in example["trained"] if entry[4] is not None]
        for index, group in groupby(sorted(spelled, key=lambda entry: (entry[3], entry[0])), lambda entry: entry[3]):
            mine = list(group)
            text = made.tokenizer.decode([token for _, token, *_ in mine], skip_control=False)
            claimed = named(mine, conversation.messages[index].content)
            if "\ufffd" in text:  # the cut went through a character
                continue
            if loss in ("replies", "last_reply") and conversation.messages[index].role == "assistant":
                assert "".join(claimed.split()) in "".join(text.split())
                assert len("".join(text.split())) - len("".join(claimed.split())) <= 1, "one token may hold an end too"
            assert subsequence(claimed, text) or claimed in json.loads(f'"{text}"')


def test_each_token_of_a_reply_is_named_exactly() -> None:
    made = bind("chatml", family("qwen2"))
    encoder = Encoder(made, made.tokenizer, LossOptions(), 1000, "drop")
    reply = "  The answer is 🦜,\nhello. "
    conversation = Conversation(
        (Message("user", "hello <|im_end|>"), Message("assistant", reply)), origin=Origin("f", 7)
    )
    _, line = ledger_of(conversation, encoder)
    assert line["characters"] == {"in": 16 + len(reply), "trained": len(reply), "context": 16, "cut": 0, "rejected": 0}
    (example,) = line["examples"]
    *body, end = example["trained"]
    assert end[3:] == [1, None, None, "end"]
    assert made.tokenizer.names[end[1]] == "<|im_end|>"
    decoded = made.tokenizer.decode([token for _, token, *_ in body])
    assert decoded == reply == named(body, reply)
    starts = [start for *_, start, _, _ in body]
    assert starts == sorted(starts)


def test_what_is_cut_says_by_what() -> None:
    made = bind("llama2", family("llama2"))
    encoder = Encoder(made, made.tokenizer, LossOptions(), 60, "keep_reply")
    messages = [Message("user", "  first question " * 9), Message("assistant", "an answer"), Message("user", " hello ")]
    conversation = Conversation((*messages, Message("assistant", " the answer ")), origin=Origin("f", 0))
    _, line = ledger_of(conversation, encoder)
    assert line["examples"][0]["cut"]
    first, second, third, last = line["messages"]
    assert first["cut"] == first["characters"] and second["cut"] == second["characters"], "the oldest turn went"
    assert third["context"] >= 5 and last["trained"] >= 10
    assert line["cut_by"]["max_length"] >= second["characters"]
    assert line["cut_by"]["template"] >= 2, "spaces around texts"


def test_rows_are_rejected_with_all_their_characters(tmp_path: Path, tokenizer: TinyTokenizer, cache: Path) -> None:
    file = tmp_path / "rows.jsonl"
    good = {"instruction": "hello", "input": "", "output": "world"}
    rows = [good, {**good, "output": ""}, {**good, "output": 7}, {"instruction": "a" * 500, "output": "b" * 900}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = DataOptions(train=[str(file)], bad_rows="skip", max_length=200, truncation="drop", validation=None)
    made = bind("jinja", tokenizer)
    encoder = Encoder(made, tokenizer, options, options.max_length, options.truncation)
    prepared = prepare(options, tokenizer, made, seed=0)
    found = list(lines(walk(options, encoder), encoder, {"train": iter(prepared.preview())}))
    assert [line.get("rejected") for line in found] == [
        None, "cannot be used", "cannot be used", "longer than max_length",
    ]  # fmt: skip
    assert [line["characters"]["rejected"] for line in found] == [0, 5, 5, 1400]
    totals = Totals()
    for line in found:
        totals.add(line)
    assert totals.balance == 0 and totals.rows == 4 and totals.examples == 1
    assert totals.tokens == prepared.counts.tokens and totals.trained_tokens == prepared.counts.trained_tokens


def test_texts_are_laid_on_what_they_show() -> None:
    thought = "<think>\nab\n</think>\n\nab"
    first, second = align(thought, ["ab", "ab"])
    assert first.tolist() == [8, 9] and second.tolist() == [21, 22]
    (place,) = align('say "a"\nb', ['say \\"a\\"\\nb'])
    assert place.tolist() == [0, 1, 2, 3, 4, 4, 5, 6, 6, 7, 7, 8]
    space, body, end = align("  hi", [" ", "hi", "###"])
    assert space.tolist() == [-1] and body.tolist() == [2, 3] and end.tolist() == [-1] * 3
    message = Message("user", "one\ntwo three", context="two three")
    assert kept_characters(message, "one\nthree").tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 12]
    assert kept_characters(message, "ne").tolist() == [1, 2]
    assert kept_characters(Message("user", "abcabc"), "abc").tolist() == [3, 4, 5]
