"""Whether two models read the same: what their tokenizers make of the same texts, their templates of the same turns.

A merged folder's weights may be right and its chat still another one: its tokenizer or its chat template decides what
the weights are asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorikeet.base.errors import DataError, TemplateError
from lorikeet.base.nouns import Conversation, Example
from lorikeet.data.encode import encode_prompt
from lorikeet.data.templates._contract import Template
from lorikeet.tokens._contract import Tokenizer
from lorikeet.verify.conversations import adversarial

CONTROL = 6  # names of control tokens that stand in texts


@dataclass(frozen=True)
class Difference:
    """The first one: of what, and what each side makes of it."""

    where: str
    trained: str
    merged: str


def tokenizers_differ(trained: Tokenizer, merged: Tokenizer, examples: Sequence[Example]) -> Difference | None:
    """On the texts and the ids of `examples`, and on texts that tokenizers trip over. One that has the same
    fingerprint is the same; another may still be, written by another program."""
    if trained.fingerprint == merged.fingerprint:
        return None
    seen: set[int] = set()
    for number, example in enumerate(examples):
        ids = example.tokens.tolist()
        seen.update(ids)
        where = f"held-out conversation {number + 1}"
        if found := _encoded(where, trained.decode(ids), trained, merged):
            return found
    for name, token in trained.control.items():
        there = merged.control.get(name)
        if there != token and (there is not None or token in seen):
            return Difference(f"the control token {name}", str(token), "plain text" if there is None else str(there))
    for name, conversation in adversarial(list(trained.control)[:CONTROL]).items():
        for message in conversation.messages:
            if found := _encoded(f"'{name}'", message.content, trained, merged):
                return found
    return None


def templates_differ(trained: Template, merged: Template) -> Difference | None:
    """On prompts that templates trip over, and in what ends a reply. Both are bound to tokenizers that agree."""
    ends = [(sorted(one.stop_ids), sorted(one.stop_strings)) for one in (trained, merged)]
    if ends[0] != ends[1]:
        return Difference("what ends a reply", str(ends[0]), str(ends[1]))
    for name, conversation in adversarial(list(trained.tokenizer.control)[:CONTROL]).items():
        prompts = [_prompt(conversation, one) for one in (trained, merged)]
        if prompts[0] != prompts[1]:
            return Difference(f"'{name}'", *_around(*(_words(ids, trained.tokenizer) for ids in prompts)))
    return None


def _encoded(where: str, text: str, trained: Tokenizer, merged: Tokenizer) -> Difference | None:
    ids = [one.encode(text)[0] for one in (trained, merged)]
    return None if ids[0] == ids[1] else Difference(where, *_around(*map(str, ids)))


def _prompt(conversation: Conversation, template: Template) -> list[int] | None:
    """The ids before a reply; None where the template cannot say this."""
    try:
        return encode_prompt(conversation, template, template.tokenizer)
    except (TemplateError, DataError):
        return None


def _words(ids: list[int] | None, tokenizer: Tokenizer) -> str:
    return "refused" if ids is None else tokenizer.decode(ids, skip_control=False)


def _around(one: str, other: str) -> tuple[str, str]:
    """Both from a little before their first difference."""
    at = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    start = max(at - 16, 0)
    left, right = (repr(text[start : at + 24]) for text in (one, other))
    return left, right
