"""The proof of templates: every published one passes, as transformers renders it, and faults of each kind are found."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.utils.chat_template_utils import render_jinja_template

from data.templates.families import FAMILIES, PUBLISHED, bind, source
from lorikeet.api.proving import verify_template
from lorikeet.base.errors import LorikeetError, TemplateError
from lorikeet.base.nouns import Conversation, Message
from lorikeet.cli.main import run_command
from lorikeet.data.encode import encode_conversation
from lorikeet.data.layout import lay_out, prompt_segments
from lorikeet.data.loss import LossOptions
from lorikeet.data.templates._contract import Segment
from lorikeet.tokens._folder import Special
from lorikeet.tokens.huggingface import HuggingFaceTokenizer
from lorikeet.verify import template as proof
from lorikeet.verify.conversations import adversarial
from lorikeet.verify.template import TheirTemplate, _plain, compare_all, prompt_fault, table

CHATML = ["<|im_start|>", "<|im_end|>"]
GLM = ("system", "user", "assistant", "observation")
GLM_TOKENS: tuple[None, str, list[str]] = (
    None, "<|endoftext|>", ["[gMASK]", "<sop>", *(f"<|{role}|>" for role in GLM)]
)  # fmt: skip
COHERE = [f"<|{name}_TOKEN|>" for name in ("START_OF_TURN", "END_OF_TURN", "SYSTEM", "USER", "CHATBOT")]
# published template: (BOS, EOS, other control tokens), or a family that has them
MODELS: dict[str, tuple[str | None, str, list[str]] | str] = {
    "chatml": "qwen2", "llama2": "llama2", "llama3": "llama3", "llama3_1": "llama3_1", "llama3_2": "llama3_1",
    "mistral_v1": "llama2", "mistral_v3": "mistral_v3", "mistral_tekken": "mistral_tekken", "mistral_v7": "mistral_v7",
    "gemma2": "gemma", "gemma3": "gemma", "qwen2_5": "qwen2_5", "qwen3": "qwen3", "qwen3_2507": "qwen3",
    "zephyr": "llama2", "phi3": "phi3", "phi3_5": "phi3", "deepseek_llm": "deepseek_llm",
    "deepseek_v3": "deepseek_v3", "deepseek_r1": "deepseek_r1",
    "command_r": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", COHERE),
    "exaone3_5": ("[BOS]", "[|endofturn|]", ["[|system|]", "[|user|]", "[|assistant|]"]),
    "falcon_h1": ("<|begin_of_text|>", "<|end_of_text|>", CHATML),
    "glm4_5": GLM_TOKENS, "glm4_0414": GLM_TOKENS, "codegeex4": GLM_TOKENS,
    "internlm2_5": ("<s>", "</s>", CHATML), "internlm3": ("<s>", "</s>", CHATML),
    "yi_1_5": (None, "<|endoftext|>", [*CHATML, "<|im_sep|>"]),
    "deepseek_v2_5": "deepseek_v3", "deepseek_v3_1": "deepseek_r1",
    "ernie4_5": (None, "</s>", ["<|begin_of_sentence|>", "<|end_of_sentence|>"]),
    "moonlight": (None, "[EOS]", [f"<|im_{name}|>" for name in ("system", "user", "assistant", "middle", "end")]),
    "lfm2": ("<|startoftext|>", "<|endoftext|>", [*CHATML, "<|tool_list_start|>", "<|tool_list_end|>"]),
    "llama4": ("<|begin_of_text|>", "<|end_of_text|>", ["<|header_start|>", "<|header_end|>", "<|eot|>"]),
    "phi4_reasoning": (None, "<|endoftext|>", [*CHATML, "<|im_sep|>"]),
}  # fmt: skip


@cache
def tokenizer(name: str) -> HuggingFaceTokenizer:
    """A small byte-level tokenizer with the model's control tokens and its published template."""
    said = MODELS[name]
    bos, eos, others = FAMILIES[said] if isinstance(said, str) else said
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=letters)
    made.train_from_iterator(["user\n\nassistant\n the weather of a city \n\n"] * 4, trainer)
    names = {"eos_token": eos} | ({"bos_token": bos} if bos else {})
    return HuggingFaceTokenizer(made, Special(names, tuple(others), bos is not None, (), source(name)))


@pytest.mark.parametrize("name", MODELS)
def test_published_templates_are_followed(name: str) -> None:
    own = tokenizer(name)
    found = compare_all(bind("jinja", own), TheirTemplate(source(name), own))
    assert not [one for one in found if one.failed], "\n".join(table(found))
    assert sum(one.verdict == "same ids" for one in found) >= 8


def test_every_published_template_is_tried_and_has_a_source() -> None:
    files = {file.stem for file in PUBLISHED.glob("*.jinja")}
    named = (PUBLISHED / "README.md").read_text(encoding="utf-8")
    assert files == set(MODELS) and all(f"`{name}.jinja`" in named for name in files) and len(files) >= 15 + 2


@pytest.mark.parametrize("name", MODELS)
def test_theirs_is_what_transformers_renders(name: str) -> None:
    own, count = tokenizer(name), 0
    theirs = TheirTemplate(source(name), own)
    for conversation in adversarial(tuple(own.control)).values():
        for reply in (False, True):
            try:
                said, _ = render_jinja_template(
                    [[_plain(message) for message in conversation.messages]],
                    tools=list(conversation.tools) or None,
                    chat_template=source(name),
                    add_generation_prompt=reply,
                    **own.names,
                )
            except Exception:
                continue
            assert theirs.text(conversation, reply) == said[0]
            count += 1
    assert count >= 10


WORDS = st.text(max_size=6) | st.sampled_from([" a ", "\n", "</s>", "<|im_end|>x", "\n\nb", "[/INST]", "0", " "])


@pytest.mark.parametrize("name", [name for name in MODELS if name != "deepseek_r1"])
@given(texts=st.lists(WORDS.filter(lambda text: "think" not in text), min_size=2, max_size=6), system=st.booleans())
@settings(max_examples=10, deadline=None)
def test_prompts_in_training_are_prompts_at_inference(name: str, texts: list[str], system: bool) -> None:
    own = tokenizer(name)
    messages = [Message(("user", "assistant")[at % 2], text) for at, text in enumerate(texts)]
    first = [Message("system", "Be brief.")] if system else []
    assert prompt_fault(Conversation((*first, *messages)), bind("jinja", own), own) is None


TOOLS = ({"type": "function", "function": {"name": "weather", "description": "W", "parameters": {"type": "object"}}},)


def called(content: str = "") -> Message:
    function = {"name": "weather", "arguments": {"city": "x"}}
    return Message("assistant", content, tool_calls=({"id": "a1b2c3d4e", "type": "function", "function": function},))


TALK = (Message("user", "q"), called(), Message("tool", "21", tool_call_id="a1b2c3d4e"), Message("assistant", "warm"))


def trained(name: str, kind: str, **options: object) -> list[str]:
    own = tokenizer(name)
    template = bind(kind, own, **options)
    conversation = Conversation(TALK, TOOLS)
    assert prompt_fault(conversation, template, own) is None
    shown = []
    for _, ids, weights in encode_conversation(conversation, template, own, LossOptions()):
        marked = "".join(
            own.decode([token], skip_control=False) if weight > 0 else "|"
            for token, weight in zip(ids.tolist(), weights)
        )
        shown += [part for part in marked.split("|" * 4) if part.strip("|")]
    return [part.strip("|") for part in shown]


@pytest.mark.parametrize("name", MODELS)
def test_calls_are_learned_only_where_the_prompt_shows_the_tools(name: str) -> None:
    """A call has the tool's name in it, and so had the text that was looked at: DeepSeek's template, which shows no
    tools, was taken to show them wherever one was called."""
    template = bind("jinja", tokenizer(name))
    for conversation in adversarial(()).values():
        replies = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
        if not conversation.tools or not replies:
            continue
        try:
            lay_out(conversation, template, replies)
        except TemplateError:
            continue
        for index in replies:
            prompt_segments(Conversation(conversation.messages[:index], conversation.tools), template)


def test_a_template_without_tools_is_refused_whatever_the_texts_say() -> None:
    template = bind("jinja", tokenizer("deepseek_v3"))
    for talk in (TALK, (Message("user", "How is the weather?"), Message("assistant", "Fine."))):
        with pytest.raises(TemplateError, match="leaves out the tools"):
            lay_out(Conversation(talk, TOOLS), template, [len(talk) - 1])
        with pytest.raises(TemplateError, match="leaves out the tools"):
            prompt_segments(Conversation(talk[:-1], TOOLS), template)
    told = (Message("system", "You may call weather(city)."), *TALK)
    assert lay_out(Conversation(told, TOOLS), template, [len(told) - 1])


def test_react_trains_thoughts_actions_and_the_word_observation() -> None:
    call, answer = trained("qwen2_5", "react")
    assert call == 'Thought: \nAction: weather\nAction Input: {"city": "x"}\nObservation:'
    assert "21" not in answer and "Final Answer: warm" in answer


@pytest.mark.parametrize("kind", ["qwen", "jinja"])
def test_calls_are_trained_and_results_are_not(kind: str) -> None:
    text = " ".join(trained("qwen2_5", kind))
    assert '{"name": "weather", "arguments": {"city": "x"}}' in text and "warm" in text
    assert "21" not in text and "tool_response" not in text and "description" not in text


def test_a_template_that_differs_is_found(tmp_path: Path) -> None:
    own = tokenizer("chatml")
    wrong = source("chatml").replace("<|im_end|>", "<|im_end|> ")
    found = compare_all(bind("chatml", own), TheirTemplate(wrong, own))
    broken = [one for one in found if one.failed]
    assert broken and all(one.theirs != one.ours for one in broken)
    assert any("theirs" in line for line in table(found))


@pytest.mark.parametrize("name", ["llama3", "llama2", "gemma2", "deepseek_llm"])
def test_a_second_bos_is_a_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, right = tokenizer(name), proof._segments
    assert own.bos_token

    def twice(conversation: Conversation, *asked: Any) -> list[Segment]:
        return [Segment(own.bos_token or "", control=True), *right(conversation, *asked)]

    monkeypatch.setattr(proof, "_segments", twice)
    found = compare_all(bind("jinja", own), TheirTemplate(source(name), own))
    assert not [one for one in found if one.verdict == "same ids"], "\n".join(table(found))


@pytest.fixture
def model(tiny_model: Path) -> str:
    return str(tiny_model)


def test_the_command_writes_a_certificate(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.json"
    assert run_command(["verify", "template", model, "-o", str(file)]) == 0
    made = json.loads(file.read_text())
    assert made["passed"] and len(made["conversations"]) >= 20 and "same ids" in capsys.readouterr().out


def test_the_command_fails_where_anything_differs(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, other = tmp_path / "c.json", tmp_path / "other.jinja"
    other.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    arguments = ["verify", "template", model, "--template", "chatml", "--against", str(other), "-o", str(file)]
    assert run_command(arguments) == 1
    assert not json.loads(file.read_text())["passed"]
    said = capsys.readouterr()
    assert "theirs" in said.out and "CheckFailed" in said.err


def test_bad_input(model: str, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    wrong = tmp_path / "wrong.jinja"
    wrong.write_text("{% for %}")
    latin = tmp_path / "latin.jinja"
    latin.write_bytes(b"\xff\xfe{")
    cases: list[dict] = [
        {"model": str(tmp_path / "none")},
        {"kind": "chatmll"},
        {"against": tmp_path / "missing.jinja"},
        {"against": tmp_path},
        {"against": wrong},
        {"against": latin},
        {"output": tmp_path},
        {"output": tmp_path / "no" / "c.json"},
    ]
    for case in cases:
        with pytest.raises(LorikeetError):
            verify_template(**({"model": model, "output": file} | case))
        assert not file.exists()


def test_a_model_without_a_template_says_so(tiny_model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    config = json.loads((bare / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(TemplateError, match="no chat template to compare with"):
        verify_template(str(bare), kind="chatml", output=tmp_path / "c.json")
