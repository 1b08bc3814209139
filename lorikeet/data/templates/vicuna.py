"""Vicuna v1.1: one line of system prompt, then `USER: ... ASSISTANT: ...</s>`, as FastChat writes it.

The space after `ASSISTANT:` is written by the model: the prompt ends at the colon.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lorikeet.base.nouns import Conversation
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment, TemplateOptions
from lorikeet.tokens._contract import Tokenizer

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class Vicuna(TemplateOptions):
    """`USER:` and `ASSISTANT:`; a reply ends with EOS."""

    kind: Literal["vicuna"] = Field("vicuna", description="USER: ... ASSISTANT: ...</s>")
    system: str = Field(SYSTEM, description="What stands first where a conversation brings no system prompt.")

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return _Vicuna(self, tokenizer, end=tokenizer.eos_token)


class _Vicuna(BoundTemplate):
    options: Vicuna

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        self.plain(conversation, ("system", "user", "assistant"))
        segments: list[Segment] = []
        if not (conversation.messages and conversation.messages[0].role == "system") and self.options.system:
            segments.append(Segment(self.options.system + " "))
        for index, message in enumerate(conversation.messages):
            content = Segment(message.content, message=index, part="content")
            if message.role == "system":
                segments += [content, Segment(" ")]
            elif message.role == "user":
                segments += [Segment("USER: "), content, Segment(" ")]
            else:
                segments += [Segment("ASSISTANT:"), Segment(" "), content, *self.eos(index)]
        if reply:
            segments.append(Segment("ASSISTANT:"))
        return segments
