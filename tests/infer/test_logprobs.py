"""What a reply says of its tokens is what the network says of them, in the bytes that they add."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from infer.conftest import END, ByteTokenizer, ids
from lorikeet.infer.engine import Engine, Event, Request
from lorikeet.infer.logprobs import TokenLogprob, token_logprob
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.ops.attention import PackedView
from tokens.test_spelling import pieces


def say(engine: Engine, text: str, **options: Any) -> list[Event]:
    return list(engine.generate([Request(0, ids(text), GenerateOptions(max_new_tokens=9, **options))]))


def of_tokens(events: list[Event]) -> list[TokenLogprob]:
    assert [len(event.logprobs) for event in events] == [len(event.ids) for event in events]
    return [one for event in events for one in event.logprobs]


def full_forward(engine: Engine, tokens: list[int]) -> torch.Tensor:
    row, positions = torch.tensor(tokens), torch.arange(len(tokens))
    view = PackedView(torch.full((len(row),), len(row), dtype=torch.int32), positions)
    with torch.no_grad():
        return engine.model.head.logits(engine.model.hidden(row, positions, view)).float().log_softmax(-1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.3, "top_k": 3, "seed": 5},
        {"repetition_penalty": 1.4, "logit_bias": {40: 5}},
        {"guide": {"kind": "regex", "regex": "[a-z]{20}"}},
    ],
    ids=["greedy", "drawn", "penalised", "guided"],
)
def test_logprobs_equal_the_full_forward_s(engine: Engine, options: dict[str, Any]) -> None:
    """Whatever chose the token: the distribution is the network's own."""
    if "guide" in options:
        pytest.importorskip("llguidance")
    found, prompt = of_tokens(say(engine, "hello", logprobs=3, **options)), ids("hello")
    said = [one.id for one in found]
    expected = full_forward(engine, prompt + said)[len(prompt) - 1 : -1]
    assert len(found) == 9
    for one, row in zip(found, expected):
        assert one.logprob == pytest.approx(float(row[one.id]), abs=1e-4)
        assert [other.logprob for other in one.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
        assert [other.logprob for other in one.top] == sorted((other.logprob for other in one.top), reverse=True)


def test_none_unless_asked_and_none_of_the_others_with_zero(engine: Engine) -> None:
    assert not any(event.logprobs for event in say(engine, "hello"))
    assert all(one.top == () for one in of_tokens(say(engine, "hello", logprobs=0)))


def test_half_characters_are_bytes_and_all_join_to_the_reply(echo: Engine) -> None:
    text = "Grüße 🗼!"
    events = list(echo.generate([Request(0, ids(text + "<end>"), GenerateOptions(max_new_tokens=99, logprobs=0))]))
    found = of_tokens(events)
    assert b"".join(one.raw for one in found).decode() == text == "".join(event.text for event in events)
    assert [one.text for one in found][:4] == ["G", "r", "\\xc3", "\\xbc"]
    assert not any("\ufffd" in one.text for one in found)


def test_a_control_token_has_its_name() -> None:
    row = torch.zeros(END + 5)
    row[END] = 9.0
    one = token_logprob(row, 65, 1, ByteTokenizer(), first=True)
    assert (one.text, one.raw) == ("A", b"A") and (one.top[0].text, one.top[0].raw) == ("<end>", b"<end>")
    assert token_logprob(row, END + 3, 0, ByteTokenizer(), first=False).raw == b""  # no token has this id


def test_the_space_that_a_tokenizer_drops_at_the_start_is_no_part_of_the_text(tmp_path: Path) -> None:
    tokenizer = pieces(tmp_path, model_type="bpe")
    inside = tokenizer.spelling.inside
    word, text = next((id, text.decode()) for id, text in enumerate(inside) if text[:1] == b" " and text[1:].isalpha())
    row = torch.zeros(tokenizer.vocab_size)
    assert token_logprob(row, word, 0, tokenizer, first=True).text == text[1:]
    assert token_logprob(row, word, 0, tokenizer, first=False).text == text
