"""Gemma 1 to 3: `<start_of_turn>user`, a line end, the stripped text, `<end_of_turn>`; replies are of the role `model`.

There is no system turn: as in Gemma 3's published template, the system prompt stands at the start of the first
question. Gemma 2's template refuses system prompts; without one the two are the same.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lorikeet.base.nouns import Conversation
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment
from lorikeet.data.templates._suits import MarkedOptions
from lorikeet.tokens._contract import Tokenizer


class Gemma(MarkedOptions):
    """`<start_of_turn>` and `<end_of_turn>`, of Gemma 1, 2 and 3."""

    kind: Literal["gemma"] = Field("gemma", description="<start_of_turn>user ... <end_of_turn>")
    system: str | None = Field(None, description="The system prompt of conversations that bring none; null adds none.")

    def marks(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        return "<start_of_turn>", "<end_of_turn>"

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return _Gemma(self, tokenizer, end="<end_of_turn>")


class _Gemma(BoundTemplate):
    options: Gemma

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        self.plain(conversation, ("system", "user", "assistant"))
        system, turns = self.turn_by_turn(conversation)
        segments: list[Segment] = []
        for place, (index, message) in enumerate(turns):
            role = "model" if message.role == "assistant" else "user"
            segments += [self.token("<start_of_turn>"), Segment(role + "\n")]
            if place == 0 and system is not None:
                segments += [self.content(0, system.content), Segment("\n\n")]
            elif place == 0 and self.options.system:
                segments.append(Segment(self.options.system + "\n\n"))
            segments += [self.content(index, message.content.strip())]
            segments += [self.token("<end_of_turn>", message=index, end=True), Segment("\n")]
        if reply:
            segments += [self.token("<start_of_turn>"), Segment("model\n")]
        return segments
