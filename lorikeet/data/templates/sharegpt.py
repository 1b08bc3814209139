"""ShareGPT's plain dialogue: a header line, then `HUMAN: text` and `GPT: text`, a line each.

The roles are ShareGPT's own names in capitals. Unlike the scripts this layout comes from, each reply ends with EOS
before its line end, or a model would go on with the next question by itself.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lorikeet.base.nouns import Conversation
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment, TemplateOptions
from lorikeet.tokens._contract import Tokenizer

HEADER = "A conversation between a helpful AI model and the user"


class ShareGPT(TemplateOptions):
    """`HUMAN: ...` and `GPT: ...` under a header line; a reply ends with EOS."""

    kind: Literal["sharegpt"] = Field("sharegpt", description="HUMAN: ... GPT: ..., a line each")
    system: str = Field(HEADER, description="The first line where a conversation brings no system prompt.")
    user: str = Field("HUMAN", min_length=1, description="What stands before the colon of a user's line.")
    assistant: str = Field("GPT", min_length=1, description="What stands before the colon of a reply.")

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return _ShareGPT(self, tokenizer, end=tokenizer.eos_token)


class _ShareGPT(BoundTemplate):
    options: ShareGPT

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        self.plain(conversation, ("system", "user", "assistant"))
        segments: list[Segment] = []
        if self.options.system and not (conversation.messages and conversation.messages[0].role == "system"):
            segments.append(Segment(self.options.system + "\n"))
        for index, message in enumerate(conversation.messages):
            content = self.content(index, message.content)
            if message.role == "system":
                segments += [content, Segment("\n")]
            elif message.role == "user":
                segments += [Segment(self.options.user + ": "), content, Segment("\n")]
            else:
                # the space is the model's: a prompt ends at the colon
                segments += [Segment(self.options.assistant + ":"), Segment(" "), content, *self.eos(index)]
                segments.append(Segment("\n"))
        if reply:
            segments.append(Segment(self.options.assistant + ":"))
        return segments
