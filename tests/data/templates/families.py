"""Tokenizers with the control tokens of each family of models, over the small byte-level BPE."""

from __future__ import annotations

import hashlib
from pathlib import Path

from data.conftest import TinyTokenizer
from lorikeet.base.kinds import kind_class
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import TemplateOptions

PUBLISHED = Path(__file__).parent / "published"
DEEPSEEK = ["<｜User｜>", "<｜Assistant｜>"]
MISTRAL = ["[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"]
MISTRAL += ["[/TOOL_RESULTS]"]
# control tokens besides BOS and EOS, and those two, as the models' own tokenizers have them
FAMILIES: dict[str, tuple[str | None, str, list[str]]] = {
    "llama2": ("<s>", "</s>", []),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "gemma": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "qwen2": (None, "<|endoftext|>", ["<|im_start|>", "<|im_end|>"]),
    "phi3": ("<s>", "<|endoftext|>", ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]),
    "mistral_v3": ("<s>", "</s>", MISTRAL),
    "mistral_tekken": ("<s>", "</s>", [*MISTRAL, "<SPECIAL_20>"]),
    "mistral_v7": ("<s>", "</s>", [*MISTRAL, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]),
    "deepseek_llm": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", []),
    "deepseek_v3": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", DEEPSEEK),
}
FAMILIES["llama3_1"] = (*FAMILIES["llama3"][:2], [*FAMILIES["llama3"][2], "<|eom_id|>"])
FAMILIES["qwen2_5"] = (*FAMILIES["qwen2"][:2], [*FAMILIES["qwen2"][2], "<tool_call>", "</tool_call>"])
FAMILIES["qwen3"] = (*FAMILIES["qwen2"][:2], [*FAMILIES["qwen2_5"][2], "<think>", "</think>"])
FAMILIES["deepseek_r1"] = (*FAMILIES["deepseek_v3"][:2], [*DEEPSEEK, "<think>", "</think>"])

_MADE: dict[str, TinyTokenizer] = {}


def family(name: str, published: str | None = None) -> TinyTokenizer:
    """The tokenizer of a family, with the chat template of the file `published`, if any."""
    key = f"{name} {published}"
    if key not in _MADE:
        bos, eos, marks = FAMILIES[name]
        made = TinyTokenizer(bos=bos, eos=eos, chat_template=source(published) if published else None)
        first = made.bpe.get_vocab_size()
        made.control = {token: first + at for at, token in enumerate(token for token in (bos, eos, *marks) if token)}
        made.names = {number: token for token, number in made.control.items()}
        made.vocab_size, made.pad_id = first + len(made.control), made.control[eos]
        made.fingerprint = hashlib.sha256(repr(made.control).encode()).hexdigest()
        _MADE[key] = made
    return _MADE[key]


def source(published: str) -> str:
    return (PUBLISHED / f"{published}.jinja").read_text(encoding="utf-8").removesuffix("\n")


def bind(kind: str, tokenizer: TinyTokenizer, **options: object) -> BoundTemplate:
    return kind_class("lorikeet.data.templates", TemplateOptions, kind)(**options).bind(tokenizer)


def talk(*pairs: tuple[str, str] | Message, **more: object) -> Conversation:
    messages = tuple(pair if isinstance(pair, Message) else Message(*pair) for pair in pairs)
    return Conversation(messages, origin=Origin("f.json", 3), **more)
