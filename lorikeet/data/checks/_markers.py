"""Strings that mean something to a model's format: control tokens, and the words a template writes around turns."""

from __future__ import annotations

import re

from lorikeet.base.errors import TemplateError
from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.truncate import Encoder

# of the families of models: what a scrape, or rows rendered before, bring along
KNOWN_CONTROL = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>",
    "<|system|>", "<|end|>", "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
)  # fmt: skip
KNOWN_WORDS = (
    "### Instruction:", "### Response:", "### Input:", "### Human:", "### Assistant:", "[INST]", "[/INST]", "<<SYS>>",
    "<</SYS>>",
)  # fmt: skip
THOUGHTS = ("<think>", "</think>")  # a reply may well have them


def control_strings(encoder: Encoder | None) -> list[str]:
    """The control tokens of the model; without one, those of the usual families."""
    if encoder is None:
        return list(KNOWN_CONTROL)
    return [name for name in encoder.tokenizer.control if len(name) > 2]


def marker_strings(encoder: Encoder | None) -> list[str]:
    """The words that templates write around turns, this model's own among them."""
    own = _own_words(encoder) if encoder is not None else []
    control = set(control_strings(encoder))
    return [word for word in dict.fromkeys((*own, *KNOWN_WORDS, *KNOWN_CONTROL)) if word not in control]


def pattern_of(words: list[str]) -> re.Pattern[str] | None:
    """What finds any of `words`; one that begins with a letter only at the start of a line, as turns begin."""
    if not words:
        return None
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(("(?m:^)" if word[0].isalnum() else "") + re.escape(word) for word in longest_first))


def _own_words(encoder: Encoder) -> list[str]:
    """Of what the template writes itself around a question and its answer, the lines with a mark in them."""
    probe = Conversation((Message("user", "\ue000"), Message("assistant", "\ue001"), Message("user", "\ue002")))
    try:
        segments = encoder.template.render(probe, reply=True)
    except TemplateError:
        return []
    own = [one.text for one in segments if not one.control and one.part == "structure"]
    lines = [line.strip() for text in own for line in text.split("\n")]
    words = [line for line in lines if len(line) >= 4 and line[-1] in ":>]|" and len(line) <= 40]
    return [word for word in dict.fromkeys(words) if "\ue000" not in word]
