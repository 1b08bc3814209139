"""Zephyr: `<|user|>`, a line end, the text, EOS, a line end. Its role marks are text, not control tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lorikeet.base.nouns import Conversation
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment, TemplateOptions
from lorikeet.tokens._contract import Tokenizer


class Zephyr(TemplateOptions):
    """`<|system|>`, `<|user|>`, `<|assistant|>`; every turn ends with EOS (Zephyr, TinyLlama chat, StableLM Zephyr)."""

    kind: Literal["zephyr"] = Field("zephyr", description="<|user|> ... </s>")
    system: str | None = Field(None, description="The system prompt of conversations that bring none; null adds none.")

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return _Zephyr(self, tokenizer, end=tokenizer.eos_token)


class _Zephyr(BoundTemplate):
    options: Zephyr

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        self.plain(conversation, ("system", "user", "assistant"))
        segments: list[Segment] = []
        eos = self.tokenizer.eos_token
        if self.options.system and not (conversation.messages and conversation.messages[0].role == "system"):
            segments += [self.token("<|system|>"), Segment("\n" + self.options.system)]
            segments += [*([self.token(eos)] if eos else ()), Segment("\n")]
        for index, message in enumerate(conversation.messages):
            segments += [self.token(f"<|{message.role}|>"), Segment("\n"), self.content(index, message.content)]
            segments += [*self.eos(index), Segment("\n")]
        if reply:
            segments += [self.token("<|assistant|>"), Segment("\n")]
        return segments
