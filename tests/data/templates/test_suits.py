"""A template for another model is refused with those that suit; a conversation it cannot say, with the reason."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from data.conftest import TinyTokenizer
from data.templates.families import bind, family, talk
from data.templates.test_published import TOOLS
from lorikeet.base.errors import TemplateError
from lorikeet.base.kinds import kinds
from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.templates._suits import suiting

ONE = Message("assistant", "", tool_calls=({"id": "x", "function": {"name": "now", "arguments": {}}},))
TWO = Message("assistant", "", tool_calls=ONE.tool_calls * 2)
BOTH = Message("assistant", "let me see", tool_calls=ONE.tool_calls)


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("llama3", "gemma"),
        ("gemma", "llama3"),
        ("chatml", "llama3"),
        ("qwen", "phi3"),
        ("phi3", "qwen2"),
        ("react", "gemma"),
    ],
)
def test_a_template_of_another_family_is_refused(kind: str, where: str) -> None:
    with pytest.raises(TemplateError) as caught:
        bind(kind, family(where))
    own, text = suiting(family(where))
    lines = str(caught.value).splitlines()
    assert f"{kind} does not suit this model" in lines[0] and len(lines) == 4
    assert all(f" {name}" in lines[2] for name in (*own, *text)) and own
    assert f"data.template={own[0]}" in lines[3] and "allow_text_markers: true" in lines[3]
    spelled = bind(kind, family(where), allow_text_markers=True)
    assert len(spelled.stop_strings) >= 1 and spelled.stop_strings[0] not in family(where).control


def test_versions_with_tokens_the_tokenizer_lacks_are_refused() -> None:
    with pytest.raises(TemplateError, match="mistral does not suit"):
        bind("mistral", family("mistral_v3"), version="v7")
    with pytest.raises(TemplateError, match="deepseek does not suit"):
        bind("deepseek", family("qwen3"), version="r1")


def test_the_model_s_own_template_comes_first() -> None:
    with pytest.raises(TemplateError, match=r"try\s+data\.template=jinja"):
        bind("chatml", family("gemma", "gemma3"))


def test_what_suits() -> None:
    assert suiting(family("gemma"))[0] == ["gemma"]
    assert suiting(family("gemma", "gemma3"))[0] == ["jinja", "gemma"]
    assert suiting(family("qwen2"))[0] == ["chatml", "qwen", "react"]
    assert suiting(family("mistral_v3"))[0] == ["mistral"]
    assert suiting(family("llama2"))[0] == []
    assert {"alpaca", "llama2", "mistral", "raw", "vicuna", "zephyr"} <= set(suiting(family("llama2"))[1])
    assert "jinja" not in suiting(family("llama2"))[1]


def test_a_model_without_any_format_may_learn_markers_as_text() -> None:
    bare = family("llama2")
    assert bind("chatml", bare).stop_strings == ("<|im_end|>",)
    with pytest.raises(TemplateError, match="no kind has this tokenizer as its own"):
        bind("chatml", bare, allow_text_markers=False)


@pytest.mark.parametrize(("where", "kind"), [("gemma", "gemma"), ("llama3", "llama3"), ("llama2", "chatml")])
def test_a_model_without_a_chat_template_is_told_one_that_suits(where: str, kind: str) -> None:
    with pytest.raises(TemplateError, match=rf"no chat template[\s\S]*try\s+data\.template={kind}$"):
        bind("jinja", family(where))
    bind(kind, family(where))


def test_the_list_of_kinds_is_never_by_hand(make_tokenizer: type[TinyTokenizer]) -> None:
    with pytest.raises(TemplateError) as caught:
        bind("jinja", make_tokenizer())
    assert set(kinds("lorikeet.data.templates")) <= set(re.findall(r"\w+", str(caught.value.allowed)))


CANNOT = {
    "two users": ("llama2", "llama2", talk(("user", "a"), ("user", "b")), "have to alternate"),
    "assistant first": ("gemma", "gemma", talk(("assistant", "a")), "have to alternate"),
    "system alone": ("mistral", "llama2", talk(("system", "a")), "there is none"),
    "late system": ("llama3", "llama3", talk(("user", "a"), ("system", "b")), "can only come first"),
    "odd role": ("phi3", "phi3", talk(("user", "a"), ("critic", "b")), "the role 'critic'"),
    "tool role": ("zephyr", "llama2", talk(("user", "a"), ("tool", "b")), "the role 'tool'"),
    "tools": ("alpaca_short", "llama2", talk(("user", "a"), tools=TOOLS), "no words for tools"),
    "tools llama 3.0": ("llama3", "llama3", talk(("user", "a"), tools=TOOLS), "no words for tools"),
    "tools mistral v1": ("mistral", "llama2", talk(("user", "a"), tools=TOOLS), "no words for tools"),
    "tools qwen 2": ("qwen", "qwen2", talk(("user", "a"), ONE), "no words for tools"),
    "two calls": ("llama3", "llama3_1", talk(("user", "a"), TWO, tools=TOOLS), "not two calls"),
    "call and text": ("llama3", "llama3_1", talk(("user", "a"), BOTH, tools=TOOLS), "not both"),
    "mistral text": ("mistral", "mistral_v3", talk(("user", "a"), BOTH, tools=TOOLS), "no text beside"),
    "react two calls": ("react", "qwen2", talk(("user", "a"), TWO, tools=TOOLS), "acts once"),
    "react result": ("react", "qwen2", talk(("user", "a"), ("tool", "b"), tools=TOOLS), "has to follow the call"),
    "react tools": ("react", "qwen2", talk(("assistant", "a"), tools=TOOLS), "there is none"),
    "llama3 tools": ("llama3", "llama3_1", talk(("system", "a"), tools=TOOLS), "there is none"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_a_kind_cannot_say_is_refused_with_the_reason(case: str) -> None:
    kind, where, conversation, reason = CANNOT[case]
    with pytest.raises(TemplateError) as caught:
        bind(kind, family(where)).render(conversation)
    assert reason in str(caught.value) and "f.json row 3" in str(caught.value)


def test_what_has_words_for_tools_is_named() -> None:
    with pytest.raises(TemplateError, match=r"allowed\s+jinja llama3 mistral qwen react"):
        bind("vicuna", family("llama2")).render(Conversation((Message("user", "q"),), TOOLS))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama3", {"version": "4"}),
        ("qwen", {"thinking": "sometimes"}),
        ("raw", {"system": "x"}),
        ("sharegpt", {"user": ""}),
    ],
)
def test_options_that_do_not_exist_are_refused(kind: str, options: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        bind(kind, family("llama2"), **options)
