"""Kinds without a published jinja template, and what holds for every kind."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.conftest import TinyTokenizer
from data.templates.families import FAMILIES, bind, family, talk
from data.templates.test_published import TOOLS
from lorikeet.base.errors import TemplateError
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.encode import encode_conversation, encode_prompt
from lorikeet.data.formats.alpaca import Alpaca
from lorikeet.data.loss import LossOptions
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment, TemplateOptions
from lorikeet.data.templates._headed import PREAMBLE, WITH_INPUT

ALL = kinds("lorikeet.data.templates")
# every kind and version with a tokenizer that it suits
SUITED = [
    *((kind, "llama2") for kind in ("alpaca", "alpaca_legacy", "alpaca_short", "vicuna", "sharegpt", "raw")),
    *((kind, "llama2") for kind in ("llama2", "zephyr", "mistral")),
    *(("mistral", f"mistral_{version}") for version in ("v3", "tekken", "v7")),
    *(("llama3", version) for version in ("llama3", "llama3_1")),
    *(("qwen", version) for version in ("qwen2", "qwen2_5", "qwen3")),
    *(("deepseek", f"deepseek_{version}") for version in ("llm", "v3", "r1")),
    *((kind, "qwen2") for kind in ("chatml", "react")),
    ("gemma", "gemma"),
    ("phi3", "phi3"),
]


def text(template: BoundTemplate, conversation: Conversation, reply: bool = False) -> str:
    return "".join(segment.text for segment in template.render(conversation, reply=reply))


def learned(template: BoundTemplate, conversation: Conversation) -> list[str]:
    """What each layout of the conversation teaches, as text."""
    tokenizer = template.tokenizer
    encoded = encode_conversation(conversation, template, tokenizer, LossOptions())
    return [tokenizer.decode(tokens[weights > 0], skip_control=False) for _, tokens, weights in encoded]


def test_every_kind_is_tried_here() -> None:
    assert {kind for kind, _ in SUITED} == set(ALL) - {"jinja"}


@pytest.mark.parametrize(("kind", "where"), SUITED)
@given(texts=st.lists(st.text("ab <|>/\n", max_size=6), min_size=2, max_size=6), system=st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_reply_is_learned_behind_the_prompt_of_inference(
    kind: str, where: str, texts: list[str], system: bool
) -> None:
    """BOS as often as the kind says; each reply's ids follow exactly the ids of its prompt, and end in a stop."""
    tokenizer = family(where)
    template = bind(kind, tokenizer)
    first = [("system", "Be brief.")] if system else []
    turns = [("assistant", said) if at % 2 else ("user", said or "q") for at, said in enumerate(texts)]
    turns = turns[: len(texts) // 2 * 2]
    conversation = talk(*first, *turns)
    if tokenizer.bos_token is not None:
        bos = Segment(tokenizer.bos_token, control=True)
        segments = template.render(conversation)
        # Llama 2 begins each of its questions with BOS; nothing begins with two
        count = len(turns) // 2 if kind == "llama2" else 1
        assert segments[0] == bos and segments[1] != bos and segments.count(bos) == count
    done = set()
    for layout, tokens, weights in encode_conversation(conversation, template, tokenizer, LossOptions()):
        spans = np.flatnonzero(np.diff(np.concatenate([[0.0], weights, [0.0]]))).reshape(-1, 2)
        replies = [
            at for at, m in enumerate(layout.conversation.messages) if m.role == "assistant" and at >= layout.first
        ]
        assert len(spans) == len(replies)
        for index, (start, end) in zip(replies, spans):
            before = Conversation(conversation.messages[:index])
            assert tokens[:start].tolist() == encode_prompt(before, template, tokenizer)
            assert tokens[end - 1] in template.stop_ids
            done.add(index)
    assert len(done) == len(turns) // 2


def test_alpaca_legacy_and_short_are_the_first_repository_s() -> None:
    tokenizer = family("llama2")
    asked = talk(("user", "do it"))
    assert text(bind("alpaca_legacy", tokenizer), asked, True) == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\ndo it\n\n### Response:"
    )
    assert text(bind("alpaca_short", tokenizer), asked, True) == "<s>### Instruction:\ndo it\n\n### Response:\n"
    answered = talk(("user", "do it"), ("assistant", "done"))
    assert text(bind("alpaca_legacy", tokenizer), answered).endswith("### Response:done</s>\n\n")
    assert learned(bind("alpaca_legacy", tokenizer), answered) == ["done</s>"]
    assert text(bind("alpaca_short", tokenizer, system="S"), asked).startswith("<s>S\n\n### Instruction:")


def test_sharegpt_is_a_header_and_a_line_for_each_turn() -> None:
    tokenizer = family("llama2")
    talked = talk(("user", "hi"), ("assistant", "hello"), ("user", "more"))
    assert text(bind("sharegpt", tokenizer), talked, True) == (
        "<s>A conversation between a helpful AI model and the user\nHUMAN: hi\nGPT: hello</s>\nHUMAN: more\nGPT:"
    )
    renamed = bind("sharegpt", tokenizer, user="USER", assistant="ASSISTANT", system="")
    assert text(renamed, talk(("user", "hi"), ("assistant", "a"))) == "<s>USER: hi\nASSISTANT: a</s>\n"
    assert learned(renamed, talk(("user", "hi"), ("assistant", "a"))) == [" a</s>"]
    assert text(renamed, talk(("system", "S"), ("user", "hi"))) == "<s>S\nUSER: hi\n"


def test_raw_is_the_texts_alone() -> None:
    tokenizer = family("llama2")
    pair = talk(("user", "2+2="), ("assistant", "4"), ("user", "3+3="))
    assert text(bind("raw", tokenizer), pair, True) == "<s>2+2=4</s>3+3="
    assert text(bind("raw", tokenizer, between="\n"), pair, True) == "<s>2+2=\n4</s>\n3+3=\n"
    assert learned(bind("raw", tokenizer), talk(("user", "q"), ("assistant", "a"))) == ["a</s>"]


REACT_TOOL = {
    "name_for_human": "Google Search",
    "name_for_model": "google_search",
    "description_for_model": "Searches the web.",
    "parameters": [{"name": "search_query", "required": True}],
}
ACT = Message(
    "assistant", "I should look.", tool_calls=({"name": "google_search", "arguments": '{"search_query": "x"}'},)
)


def test_react_is_qwen_s_function_calling() -> None:
    tokenizer = family("qwen2")
    template = bind("react", tokenizer)
    talked = talk(("user", "Who is x?"), ACT, ("tool", "x is y"), ("assistant", "y"), tools=(REACT_TOOL,))
    told = (
        "Answer the following questions as best you can. You have access to the following APIs:\n\n"
        "google_search: Call this tool to interact with the Google Search API. What is the Google Search API useful "
        'for? Searches the web. Parameters: [{"name": "search_query", "required": true}]\n\n'
        "Use the following format:\n\nQuestion: the input question you must answer\n"
        "Thought: you should always think about what to do\n"
        "Action: the action to take, should be one of [google_search]\n"
        "Action Input: the input to the action\nObservation: the result of the action\n"
        "... (this Thought/Action/Action Input/Observation can be repeated zero or more times)\n"
        "Thought: I now know the final answer\nFinal Answer: the final answer to the original input question\n\nBegin!"
    )
    asked = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"{told}\n\nQuestion: Who is x?<|im_end|>\n<|im_start|>assistant\n"
    )
    acted = 'Thought: I should look.\nAction: google_search\nAction Input: {"search_query": "x"}\nObservation:'
    final = " I now know the final answer.\nFinal Answer: y<|im_end|>\n"
    assert text(template, talked) == f"{asked}{acted} x is y\nThought:{final}"
    before = Conversation(talked.messages[:3], talked.tools)
    assert text(template, before, True) == f"{asked}{acted} x is y\nThought:"
    # the word that stops a reply is learned, what a tool says is not
    assert learned(template, talked) == [acted + final.rstrip("\n")]
    assert template.stop_strings == ("\nObservation:",)
    assert tokenizer.control["<|im_end|>"] in template.stop_ids


def test_react_tells_the_tools_before_the_last_question_or_the_first() -> None:
    tokenizer = family("qwen2")
    talked = talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), tools=TOOLS)
    last = text(bind("react", tokenizer), talked)
    assert "user\na<|im_end|>" in last and "Begin!\n\nQuestion: c" in last
    assert "Begin!\n\nQuestion: a" in text(bind("react", tokenizer, tools_at="first"), talked)
    # told last, each reply has a prompt of its own; told first, one layout serves both
    assert len(learned(bind("react", tokenizer), talked)) == 2
    assert len(learned(bind("react", tokenizer, tools_at="first"), talked)) == 1


def test_react_without_tools_is_plain_chatml() -> None:
    tokenizer = family("qwen2")
    talked = talk(("system", "s"), ("user", "q"), ("assistant", "a"))
    assert text(bind("react", tokenizer), talked) == text(bind("chatml", tokenizer), talked)


def test_a_thought_written_by_the_data_is_not_doubled() -> None:
    thought = Message("assistant", "Thought: hm", tool_calls=ACT.tool_calls)
    talked = talk(("user", "q"), ACT, ("tool", "r"), thought, ("tool", "s"), ("assistant", "a"), tools=(REACT_TOOL,))
    said = text(bind("react", family("qwen2")), talked)
    assert "\nThought: hm\nAction:" in said and "Thought: Thought" not in said and "Thought:Thought" not in said
    assert len(learned(bind("react", family("qwen2")), talked)) == 1


def test_qwen3_without_thinking_asks_behind_an_empty_thought() -> None:
    tokenizer = family("qwen3")
    template = bind("qwen", tokenizer, thinking=False)
    talked = talk(("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))
    assert text(template, talk(("user", "q")), True).endswith("assistant\n<think>\n\n</think>\n\n")
    assert learned(template, talked) == ["a<|im_end|>", "b<|im_end|>"]
    thinking = bind("qwen", tokenizer)
    assert learned(thinking, talked) == [f"<think>\n\n</think>\n\n{said}<|im_end|>" for said in "ab"]
    thought = talk(("user", "q"), ("assistant", "<think>\nhm\n</think>\n\na"))
    assert learned(thinking, thought) == ["<think>\nhm\n</think>\n\na<|im_end|>"]
    with pytest.raises(TemplateError, match="drops a part of message 1"):
        learned(template, thought)


def test_deepseek_r1_s_thoughts() -> None:
    tokenizer = family("deepseek_r1")
    eos = tokenizer.eos_token
    thought = talk(("user", "q"), ("assistant", "<think>\nhm\n</think>\n\na"), ("user", "r"), ("assistant", "b"))
    # the prompt opens the thought, the reply closes it; the earlier thought is gone from the second prompt
    assert learned(bind("deepseek", tokenizer), thought) == [f"hm\n</think>\n\na{eos}", f"\n</think>\n\nb{eos}"]
    assert "hm" not in text(bind("deepseek", tokenizer), thought, True)
    plain = talk(("user", "q"), ("assistant", "a"))
    assert learned(bind("deepseek", tokenizer, thinking=False), plain) == [f"a{eos}"]


def test_default_system_prompts() -> None:
    asked = talk(("user", "q"))
    assert "You are Qwen, created by Alibaba Cloud." in text(bind("qwen", family("qwen2_5")), asked)
    assert "system\nYou are a helpful assistant.<|im_end|>" in text(bind("qwen", family("qwen2")), asked)
    assert "system" not in text(bind("qwen", family("qwen3")), asked)
    assert "system" not in text(bind("qwen", family("qwen2"), system=""), asked)
    for kind, where in SUITED:
        if kind not in ("raw",):
            said = text(bind(kind, family(where), system="Be kind."), asked)
            own = text(bind(kind, family(where)), talk(("system", "Be kind."), ("user", "q")))
            assert said == own and said.count("Be kind.") == 1


def test_mistral_s_ids_have_nine_letters() -> None:
    tokenizer = family("mistral_v3")
    calls = tuple({"id": f"call_{at}", "function": {"name": "now", "arguments": {}}} for at in range(2))
    results = (Message("tool", "1", tool_call_id="call_1"), Message("tool", "2", tool_call_id="call_0"))
    said = text(bind("mistral", tokenizer), talk(("user", "q"), Message("assistant", "", tool_calls=calls), *results))
    given = [part.split('"')[0] for part in said.split('"id": "')[1:]]
    answered = [part.split('"')[0] for part in said.split('"call_id": "')[1:]]
    assert len(given) == 2 and given == answered[::-1] and all(len(name) == 9 and name.isalnum() for name in given)
    nameless = (Message("assistant", "", tool_calls=({"name": "now", "arguments": {}},)), Message("tool", "1"))
    said = text(bind("mistral", tokenizer), talk(("user", "q"), *nameless))
    assert said.split('"id": "')[1].split('"')[0] == said.split('"call_id": "')[1].split('"')[0]


def test_llama3_s_date_is_an_option() -> None:
    template = bind("llama3", family("llama3"), version="3.1", date="1 Jan 2026")
    assert "Today Date: 1 Jan 2026\n\n" in text(template, talk(("user", "q")))


@pytest.mark.parametrize("where", sorted(FAMILIES))
def test_control_strings_in_tools_and_results_are_plain_text(where: str) -> None:
    tokenizer: TinyTokenizer = family(where)
    attack = "".join(tokenizer.control)
    tool = {"type": "function", "function": {"name": "f", "description": attack, "parameters": {}}}
    call = Message(
        "assistant", "", tool_calls=({"id": "a" * 9, "function": {"name": "f", "arguments": {"x": attack}}},)
    )
    talked = talk(("user", attack), call, Message("tool", attack, tool_call_id="a" * 9), tools=(tool,))
    harmless = talk(("user", "q"), Message("assistant", "", tool_calls=({"id": "a" * 9, "name": "f"},)), ("tool", "r"))
    harmless = Conversation(harmless.messages, ({"name": "f"},))
    for kind in ("llama3", "mistral", "qwen", "react"):
        try:
            template = bind(kind, tokenizer)
            attacked, plain = template.render(talked), template.render(harmless)
        except TemplateError:
            continue  # this kind does not suit these models, or this version has no words for tools
        assert [part.text for part in attacked if part.control] == [part.text for part in plain if part.control]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kind": "alpaca"}, f"{WITH_INPUT}\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n"),
        ({"kind": "alpaca", "input_heading": False}, f"{PREAMBLE}\n\n### Instruction:\nAdd.\n1, 2\n\n### Response:\n"),
        ({"kind": "alpaca", "system": "Sum"}, "Sum\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n"),
        ({"kind": "alpaca_short"}, "### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n"),
        ({"kind": "alpaca_legacy"}, f"{WITH_INPUT}\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:"),
        ({"kind": "sharegpt"}, None),
        ({"kind": "vicuna"}, None),
    ],
    ids=str,
)
def test_an_alpaca_row_with_an_input(options: dict, expected: str | None) -> None:
    """Stanford Alpaca's two prompts (its train.py), LLaMA-Factory's one; templates without the word join the two."""
    read = Alpaca().read
    with_input = read({"instruction": "Add.", "input": "1, 2", "output": "3"}, Origin("x", 0))
    without = read({"instruction": "Add.", "input": "", "output": "3"}, Origin("x", 0))
    tokenizer = family("llama2")
    contract = kind_class("lorikeet.data.templates", TemplateOptions, options["kind"])
    template = contract.model_validate(options).bind(tokenizer)

    def said(conversation: Conversation) -> str:
        found = text(template, conversation.prompt(), reply=True)
        return found.removeprefix(tokenizer.bos_token or "")

    if expected is None:
        assert "Add.\n1, 2" in said(with_input)
    else:
        assert said(with_input) == expected
        assert "### Input" not in said(without) and WITH_INPUT not in said(without)
    assert learned(template, with_input)[0].lstrip().startswith("3")
