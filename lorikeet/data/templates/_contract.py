"""What every template does: a conversation to segments of text, each knowing what it is.

The same renderer serves training, chat, predict and export. A kind is an options class that `bind`s to a tokenizer.
A segment with `control=True` is exactly one control token of the tokenizer. Everything else is plain text: user text
never becomes a control token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from lorikeet.base.nouns import Conversation
from lorikeet.base.options import Options
from lorikeet.tokens._contract import Tokenizer

Part = Literal["content", "end", "structure"]


def number_as_text(value: Any) -> Any:
    """For options such as `version: 3.1`, which YAML reads as a number."""
    return str(value) if isinstance(value, (int, float)) else value


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of text, or one control token.

    part: `content` is a message's own text; `end` is what closes a message (its end-of-turn token, trained with a
    reply); `structure` is everything else: role headers, separators, default system prompts.
    """

    text: str
    control: bool = False
    message: int | None = None  # index into conversation.messages this belongs to, for content and end
    part: Part = "structure"
    reply: bool = False  # the model writes this itself at inference: its text starts on a fresh token (data/layout.py)


class Template(Protocol):
    """A template bound to a tokenizer."""

    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]  # a reply ends at any of these
    stop_strings: tuple[str, ...]  # for templates whose end of turn is not a control token
    fingerprint: str

    def render(self, conversation: Conversation, *, reply: bool = False) -> list[Segment]:
        """Segments of the conversation; `reply=True` appends the header after which the model answers.
        Raises TemplateError where the template cannot say this conversation (an odd role, say)."""
        ...


class TemplateOptions(Options):
    """Base of the template kinds; fields are `data.template`'s options."""

    says_tools: ClassVar[bool] = False  # whether the kind has words for tools and calls to them

    def marks(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        """The control tokens that turns are written with; none for a layout of plain text."""
        return ()

    def bind(self, tokenizer: Tokenizer) -> Template:
        raise NotImplementedError
