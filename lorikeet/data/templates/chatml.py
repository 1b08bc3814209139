"""ChatML: `<|im_start|>role`, a line end, the text, `<|im_end|>`, a line end."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lorikeet.base.nouns import Conversation
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment
from lorikeet.data.templates._suits import MarkedOptions
from lorikeet.tokens._contract import Tokenizer

ROLES = ("system", "user", "assistant", "tool")


class ChatML(MarkedOptions):
    """The layout OpenAI published in 2023, used by Qwen, SmolLM and many others."""

    kind: Literal["chatml"] = Field("chatml", description="<|im_start|>role ... <|im_end|>")
    system: str | None = Field(None, description="The system prompt of conversations that bring none; null adds none.")

    def marks(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        return "<|im_start|>", "<|im_end|>"

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return _ChatML(self, tokenizer, end="<|im_end|>")


class _ChatML(BoundTemplate):
    options: ChatML

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        self.plain(conversation, ROLES)
        segments: list[Segment] = []
        first = conversation.messages[0].role if conversation.messages else None
        if self.options.system and first != "system":
            segments += [self.token("<|im_start|>"), Segment("system\n" + self.options.system)]
            segments += [self.token("<|im_end|>"), Segment("\n")]
        for index, message in enumerate(conversation.messages):
            segments += [
                self.token("<|im_start|>"),
                Segment(message.role + "\n"),
                self.content(index, message.content),
                self.token("<|im_end|>", message=index, end=True),
                Segment("\n"),
            ]
        if reply:
            segments += [self.token("<|im_start|>"), Segment("assistant\n")]
        return segments
