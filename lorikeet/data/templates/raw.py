"""No markup: the texts of a conversation one behind the other, EOS behind each reply.

For prompts that carry their own layout, and for prompt and completion pairs. Whatever should stand between two texts
stands in them, or in `between`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lorikeet.base.nouns import Conversation
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment, TemplateOptions
from lorikeet.tokens._contract import Tokenizer


class Raw(TemplateOptions):
    """Texts as they are; a reply ends with EOS."""

    kind: Literal["raw"] = Field("raw", description="texts alone, EOS behind each reply")
    between: str = Field("", description="What stands between two texts, e.g. a line end.")

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return _Raw(self, tokenizer, end=tokenizer.eos_token)


class _Raw(BoundTemplate):
    options: Raw

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        self.plain(conversation, ("system", "user", "assistant"))
        segments: list[Segment] = []
        for index, message in enumerate(conversation.messages):
            if index:
                segments.append(Segment(self.options.between))
            segments.append(self.content(index, message.content))
            if message.role == "assistant":
                segments += self.eos(index)
        if reply and segments:
            segments.append(Segment(self.options.between))
        return segments
