"""Llama 2 chat: `[INST] question [/INST] answer </s>`, the system prompt inside the first question.

Each question begins with BOS, and texts are stripped, as Meta's own code and the published chat template do.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lorikeet.base.nouns import Conversation
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment, TemplateOptions
from lorikeet.tokens._contract import Tokenizer


class Llama2(TemplateOptions):
    """`[INST]` and `[/INST]` as text; a reply ends with EOS."""

    kind: Literal["llama2"] = Field("llama2", description="[INST] <<SYS>> ... [/INST] ... </s>")
    system: str | None = Field(None, description="The system prompt of conversations that bring none; null adds none.")

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return _Llama2(self, tokenizer, end=tokenizer.eos_token)


class _Llama2(BoundTemplate):
    options: Llama2

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        self.plain(conversation, ("system", "user", "assistant"))
        system, turns = self.turn_by_turn(conversation)
        bos = self.tokenizer.bos_token
        segments: list[Segment] = []
        for place, (index, message) in enumerate(turns):
            if message.role == "assistant":
                segments += [Segment(" "), self.content(index, message.content.strip())]
                segments += [self.content(index, " ", "end"), *self.eos(index)]
                continue
            if bos is not None:
                segments.append(self.token(bos))
            segments.append(Segment("[INST] "))
            text = message.content.strip()
            if place == 0 and system is not None:
                # the published template strips the whole first turn, so not the start of the question in it
                text = message.content.rstrip()
                segments += [Segment("<<SYS>>\n"), self.content(0, system.content), Segment("\n<</SYS>>\n\n")]
            elif place == 0 and self.options.system:
                text = message.content.rstrip()
                segments.append(Segment(f"<<SYS>>\n{self.options.system}\n<</SYS>>\n\n"))
            segments += [self.content(index, text), Segment(" [/INST]")]
        return segments
