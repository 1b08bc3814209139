"""The grammar of a reply that is a call or an answer: both can be said, in every form of calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llguidance")

from lorikeet.api.answering import locate
from lorikeet.data.templates._calls import CallForm, JsonForm, ReactForm
from lorikeet.data.templates._either import either
from lorikeet.infer.structured import complaint, matcher
from lorikeet.tokens._contract import Tokenizer

CITY: Any = {"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"],
             "additionalProperties": False, "$defs": {"city": {"enum": ["Paris", "Rome"]}}}  # fmt: skip
TOOLS: Any = [{"type": "function", "function": {"name": name, "parameters": CITY}} for name in ("weather", "time")]
ANSWER = (
    '%json {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"], '
    '"additionalProperties": false}'
)
ARGUMENTS = '{"city": "Rome"}'

TAGS = JsonForm("<call>\n", "\n</call>", "name", "arguments", False)
CONTROL = JsonForm("<|im_start|>[", "]", "name", "arguments", False, ', "id": "x"')
BARE = JsonForm("", "", "name", "parameters", False)
OBJECT = '{"name": "weather", "arguments": ' + ARGUMENTS
CASES: list[tuple[CallForm, str]] = [
    (TAGS, f"<call>\n{OBJECT}}}\n</call>"),
    (CONTROL, f'<|im_start|>[{OBJECT}, "id": "x"}}]'),
    (BARE, '{"name": "weather", "parameters": ' + ARGUMENTS + "}"),
    (ReactForm(), "I look.\nAction: weather\nAction Input: " + ARGUMENTS),
]


def follows(grammar: str, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a reply may be `text`, whose control tokens are control tokens, one character after the other."""
    one = matcher(grammar, tokenizer, ())
    for number, part in enumerate(text.split("<|im_start|>")):
        ids = [tokenizer.control["<|im_start|>"]] if number else []
        for id in [*ids, *(tokenizer.encode(char)[0][0] for char in part)]:
            if not one.allowed()[id]:
                return False
            one.take(id)
    return one.ended == "stop"


@pytest.mark.parametrize("form, call", CASES, ids=["tags", "control", "bare", "react"])
def test_a_call_and_an_answer_can_be_said(form: CallForm, call: str, tiny_tokenizer: Tokenizer) -> None:
    grammar = either(form, TOOLS, ANSWER, tiny_tokenizer)
    assert complaint(grammar) == ""
    before = "I know.\nFinal Answer: " if isinstance(form, ReactForm) else ""
    for said in (call, call.replace("weather", "time"), before + '{"name": "Rome"}', before + '{"name":"weather"}'):
        assert follows(grammar, tiny_tokenizer, said), said
    for wrong in (call.replace("weather", "train"), before + '{"city": 1}', "Rome"):
        assert not follows(grammar, tiny_tokenizer, wrong), wrong


@pytest.fixture
def tiny_tokenizer(tiny_model: Path) -> Tokenizer:
    return locate(tiny_model).base.tokenizer
