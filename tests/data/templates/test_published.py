"""Each kind writes what the published chat template of its models writes, and the jinja kind reads the same from it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from data.conftest import TinyTokenizer
from data.templates.families import bind, family, source, talk
from lorikeet.base.errors import TemplateError
from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.encode import encode_conversation, encode_prompt
from lorikeet.data.loss import LossOptions
from lorikeet.data.templates._bound import BoundTemplate

# published file: (kind, options that the tokenizer does not already decide, family of tokenizers)
KINDS: dict[str, tuple[str, dict[str, object], str]] = {
    "chatml": ("chatml", {}, "qwen2"),
    "llama2": ("llama2", {}, "llama2"),
    "llama3": ("llama3", {}, "llama3"),
    "llama3_1": ("llama3", {}, "llama3_1"),
    "mistral_v1": ("mistral", {}, "llama2"),
    "mistral_v3": ("mistral", {}, "mistral_v3"),
    "mistral_tekken": ("mistral", {}, "mistral_tekken"),
    "mistral_v7": ("mistral", {}, "mistral_v7"),
    "gemma2": ("gemma", {}, "gemma"),
    "gemma3": ("gemma", {}, "gemma"),
    "qwen2_5": ("qwen", {}, "qwen2_5"),
    "qwen3": ("qwen", {}, "qwen3"),
    "zephyr": ("zephyr", {}, "llama2"),
    "phi3": ("phi3", {}, "phi3"),
    "deepseek_llm": ("deepseek", {}, "deepseek_llm"),
    "deepseek_v3": ("deepseek", {}, "deepseek_v3"),
    "deepseek_r1": ("deepseek", {}, "deepseek_r1"),
}
NO_SYSTEM = {"gemma2"}
DEFAULT_SYSTEM = {"mistral_v7"}  # with today's date, which no run should depend on: compared with a system prompt only
# the system prompt stands in the last question: a rendering that ends with a reply lacks it in the published template
LAST_QUESTION = {"mistral_v3", "mistral_tekken"}

CASES = {
    "one question": talk(("user", "hi")),
    "system": talk(("system", "Be brief."), ("user", "hi")),
    "answered": talk(("user", "hi"), ("assistant", "hello")),
    "system answered": talk(("system", "Be brief."), ("user", "hi"), ("assistant", "hello")),
    "turns": talk(("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"), ("user", "q3")),
    "system turns": talk(("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2")),
    "closed turns": talk(("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")),
    "unicode": talk(("system", "日本語 é"), ("user", "naïve 🦜\u200d‽"), ("assistant", "漢字 ü"), ("user", "ok")),
    "spaces": talk(("system", "  s "), ("user", "  q \n"), ("assistant", "\n a  "), ("user", " \tr ")),
    "blank": talk(("user", " "), ("assistant", "\n"), ("user", "x")),
    "empty": talk(("user", ""), ("assistant", ""), ("user", "x")),
    "markup": talk(("user", "<|im_end|></s>[INST]<eos>"), ("assistant", "<end_of_turn><|eot_id|> {}"), ("user", "%}")),
}


def theirs(name: str, tokenizer: TinyTokenizer, conversation: Conversation, reply: bool) -> str:
    """What transformers renders."""
    messages = []
    for message in conversation.messages:
        plain: dict[str, object] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            plain["tool_calls"] = list(message.tool_calls)
        if message.tool_call_id:
            plain["tool_call_id"] = message.tool_call_id
        messages.append(plain)
    rendered, _ = render_jinja_template(
        [messages],
        tools=list(conversation.tools) or None,
        chat_template=source(name),
        add_generation_prompt=reply,
        bos_token=tokenizer.bos_token or "",
        eos_token=tokenizer.eos_token or "",
    )
    return rendered[0]


def ours(template: BoundTemplate, conversation: Conversation, reply: bool) -> str:
    return "".join(segment.text for segment in template.render(conversation, reply=reply))


def same(one: str, other: str, bos: str | None) -> bool:
    """Equal, where a template may leave BOS to the tokenizer (Zephyr's and Phi-3's do)."""
    return one == other or (bos is not None and one == bos + other)


def compared(name: str) -> Iterator[tuple[Conversation, bool]]:
    for conversation in CASES.values():
        system = conversation.messages[0].role == "system"
        closed = conversation.messages[-1].role == "assistant"
        if (system and name in NO_SYSTEM) or (not system and name in DEFAULT_SYSTEM):
            continue
        if closed and ((system and name in LAST_QUESTION) or name == "deepseek_r1"):
            continue  # see test_what_differs_from_the_published_templates_on_purpose
        yield conversation, not closed


@pytest.mark.parametrize("name", KINDS)
def test_kinds_write_what_published_templates_write(name: str) -> None:
    kind, options, where = KINDS[name]
    tokenizer = family(where, name)
    template = bind(kind, tokenizer, **options)
    count = 0
    for conversation, reply in compared(name):
        expected = theirs(name, tokenizer, conversation, reply)
        said = ours(template, conversation, reply)
        assert same(said, expected, tokenizer.bos_token), (said, expected)
        count += 1
    assert count >= 4


@pytest.mark.parametrize("name", KINDS)
def test_the_jinja_kind_reads_the_same_from_them(name: str) -> None:
    """Same text, same control tokens, same parts learned, same prompts."""
    kind, options, where = KINDS[name]
    tokenizer = family(where, name)
    mine, jinja = bind(kind, tokenizer, **options), bind("jinja", tokenizer)
    assert set(jinja.stop_ids) == set(mine.stop_ids)
    for conversation, reply in compared(name):
        if reply:
            assert encode_prompt(conversation, mine, tokenizer) == encode_prompt(conversation, jinja, tokenizer)
            continue
        one = encode_conversation(conversation, mine, tokenizer, LossOptions())
        other = encode_conversation(conversation, jinja, tokenizer, LossOptions())
        assert len(one) == len(other)
        for (_, tokens, weights), (_, their_tokens, their_weights) in zip(one, other):
            assert tokens.tolist() == their_tokens.tolist()
            assert weights.tolist() == their_weights.tolist() and weights.any()


WORDS = st.text(max_size=8) | st.sampled_from(
    [" a ", "\n", "</s>", "<|im_end|>x", "[/INST]", "<end_of_turn>", "b\n\nc"]
)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in DEFAULT_SYSTEM])
@given(texts=st.lists(WORDS.filter(lambda text: "think>" not in text), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_any_text_is_written_as_published(name: str, texts: list[str]) -> None:
    kind, options, where = KINDS[name]
    tokenizer = family(where, name)
    conversation = talk(*((("user", "assistant")[at % 2], text) for at, text in enumerate(texts)))
    reply = len(texts) % 2 == 1
    template = bind(kind, tokenizer, **options)
    segments = template.render(conversation, reply=reply)
    if reply or name != "deepseek_r1":
        expected = theirs(name, tokenizer, conversation, reply)
        assert same("".join(segment.text for segment in segments), expected, tokenizer.bos_token)
    # what a message says is never a control token, and every reply is closed
    assert not any(segment.control for segment in segments if segment.part == "content")
    closed = {segment.message for segment in segments if segment.part == "end"}
    assert {at for at in range(len(texts)) if at % 2} <= closed


TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {"type": "object"}}},
)


def call(arguments: object, identity: str = "abcdefghi") -> Message:
    function = {"name": "weather", "arguments": arguments}
    return Message("assistant", "", tool_calls=({"id": identity, "type": "function", "function": function},))


def answer(text: str = '{"celsius": 21}') -> Message:
    return Message("tool", text, tool_call_id="abcdefghi")


TOOL_CASES = {
    "asked": talk(("user", "Wetter in Köln?"), tools=TOOLS),
    "called": talk(("user", "q"), call({"city": "Köln"}), tools=TOOLS),
    "answered": talk(("user", "q"), call({"city": "Köln"}), answer(), tools=TOOLS),
    "said": talk(("user", "q"), call({"city": "x"}), answer(), ("assistant", "warm"), tools=TOOLS),
    "system": talk(("system", "s"), ("user", "q"), call({}), answer("21"), tools=TOOLS),
    "later": talk(("user", "q"), call({}), answer(), ("assistant", "a"), ("user", "again"), tools=TOOLS),
}


@pytest.mark.parametrize("case", TOOL_CASES)
@pytest.mark.parametrize("name", ["llama3_1", "mistral_v3", "mistral_tekken", "qwen2_5", "qwen3"])
def test_tools_and_calls_are_written_as_published(name: str, case: str) -> None:
    kind, options, where = KINDS[name]
    tokenizer = family(where, name)
    conversation = TOOL_CASES[case]
    reply = conversation.messages[-1].role != "assistant"
    if name in LAST_QUESTION and case == "system":
        # behind a tool's result the published template forgets the system prompt
        conversation = talk(*conversation.messages[1:], tools=TOOLS)
    template, jinja = bind(kind, tokenizer, **options), bind("jinja", tokenizer)
    assert ours(template, conversation, reply) == theirs(name, tokenizer, conversation, reply)
    if reply:
        assert encode_prompt(conversation, template, tokenizer) == encode_prompt(conversation, jinja, tokenizer)
        return
    one = encode_conversation(conversation, template, tokenizer, LossOptions())
    other = encode_conversation(conversation, jinja, tokenizer, LossOptions())
    assert [(a.tolist(), b.tolist()) for _, a, b in one] == [(a.tolist(), b.tolist()) for _, a, b in other]


@pytest.mark.parametrize("name", ["llama3_1", "mistral_v3", "qwen2_5", "qwen3"])
@pytest.mark.parametrize("through", ["kind", "jinja"])
def test_arguments_given_as_a_string_of_json_are_not_quoted_twice(name: str, through: str) -> None:
    kind, options, where = KINDS[name]
    tokenizer = family(where, name)
    template = bind(kind, tokenizer, **options) if through == "kind" else bind("jinja", tokenizer)
    said = ours(template, talk(("user", "q"), call('{"city": "Köln"}'), tools=TOOLS), False)
    assert '{"city": "Köln"}' in said and '\\"city' not in said


def test_a_template_that_joins_arguments_gets_them_as_text() -> None:
    tokenizer = family("deepseek_r1", "deepseek_v3")
    said = ours(bind("jinja", tokenizer), talk(("user", "q"), call({"city": "x"})), False)
    assert '```json\n{"city": "x"}\n```' in said


def test_what_differs_from_the_published_templates_on_purpose() -> None:
    # Mistral v0.3: the system prompt stays in the last question where a reply follows it, as it stood when asked
    tokenizer = family("mistral_v3", "mistral_v3")
    told = CASES["system answered"]
    assert ours(bind("mistral", tokenizer), told, False) == "<s>[INST] Be brief.\n\nhi[/INST] hello</s>"
    assert theirs("mistral_v3", tokenizer, told, False) == "<s>[INST] hi[/INST] hello</s>"
    # DeepSeek-R1: the reply that is learned keeps its thought, and closes one where the data has none
    tokenizer = family("deepseek_r1", "deepseek_r1")
    template = bind("deepseek", tokenizer)
    thought = talk(("user", "q"), ("assistant", "<think>\nhm\n</think>\n\na"))
    assert ours(template, thought, False).endswith("<｜Assistant｜><think>\nhm\n</think>\n\na<｜end▁of▁sentence｜>")
    assert theirs("deepseek_r1", tokenizer, thought, False).endswith("<｜Assistant｜>\n\na<｜end▁of▁sentence｜>")
    plain = talk(("user", "q"), ("assistant", "a"))
    assert ours(template, plain, False).endswith("<think>\n\n</think>\n\na<｜end▁of▁sentence｜>")


@pytest.mark.parametrize("name", sorted(LAST_QUESTION))
def test_the_jinja_kind_learns_replies_whose_system_prompt_moves(name: str) -> None:
    """The published template shows the system prompt in prompts alone; each reply is learned behind its prompt."""
    tokenizer = family(name, name)
    conversation = talk(*CASES["system turns"].messages, ("assistant", "a2"))
    one = encode_conversation(conversation, bind("jinja", tokenizer), tokenizer, LossOptions())
    other = encode_conversation(conversation, bind("mistral", tokenizer), tokenizer, LossOptions())
    assert [(a.tolist(), b.tolist()) for _, a, b in one] == [(a.tolist(), b.tolist()) for _, a, b in other]
    assert len(one) == 2 and all("s\n\nq" in tokenizer.decode(tokens) for _, tokens, _ in one)


def test_the_jinja_kind_still_refuses_a_system_prompt_that_no_prompt_shows() -> None:
    lossy = "{% for m in messages if m.role != 'system' %}{{ m.content }}{{ eos_token }}{% endfor %}"
    with pytest.raises(TemplateError, match="leaves out message 0"):
        bind("jinja", family("llama2"), source=lossy).render(CASES["system answered"])
