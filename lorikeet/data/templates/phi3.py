"""Phi-3 and Phi-3.5: `<|user|>`, a line end, the text, `<|end|>`, a line end; EOS behind the whole conversation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lorikeet.base.nouns import Conversation
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment
from lorikeet.data.templates._suits import MarkedOptions
from lorikeet.tokens._contract import Tokenizer


class Phi3(MarkedOptions):
    """`<|system|>`, `<|user|>`, `<|assistant|>` and `<|end|>`."""

    kind: Literal["phi3"] = Field("phi3", description="<|user|> ... <|end|>")
    system: str | None = Field(None, description="The system prompt of conversations that bring none; null adds none.")

    def marks(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        return "<|user|>", "<|assistant|>", "<|end|>"

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return _Phi3(self, tokenizer, end="<|end|>")


class _Phi3(BoundTemplate):
    options: Phi3

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        self.plain(conversation, ("system", "user", "assistant"))
        segments: list[Segment] = []
        if self.options.system and not (conversation.messages and conversation.messages[0].role == "system"):
            segments += [self.token("<|system|>"), Segment("\n" + self.options.system), self.token("<|end|>")]
            segments.append(Segment("\n"))
        for index, message in enumerate(conversation.messages):
            segments += [self.token(f"<|{message.role}|>"), Segment("\n"), self.content(index, message.content)]
            segments += [self.token("<|end|>", message=index, end=True), Segment("\n")]
        if reply:
            segments += [self.token("<|assistant|>"), Segment("\n")]
        elif self.tokenizer.eos_token:
            segments.append(self.token(self.tokenizer.eos_token))
        return segments
