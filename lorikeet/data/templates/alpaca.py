"""Stanford Alpaca's instruction layout, as LLaMA-Factory and others use it for conversations of any length.

The wording is that of tatsu-lab/stanford_alpaca's prompt without input: formats join the input to the instruction,
so there is one query. Where a conversation goes on, the same two headings follow again.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lorikeet.base.nouns import Conversation
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment, TemplateOptions
from lorikeet.tokens._contract import Tokenizer

PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."


class Alpaca(TemplateOptions):
    """`### Instruction:` and `### Response:`; a reply ends with EOS."""

    kind: Literal["alpaca"] = Field("alpaca", description="### Instruction: ... ### Response: ...")
    system: str = Field(PREAMBLE, description="What stands first where a conversation brings no system prompt.")

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return Headed(self, tokenizer, system=self.system)


class Headed(BoundTemplate):
    """Turns under the headings of alpaca and its relatives. `answer` is the heading of a reply with what follows it
    before the reply's text; `system` stands first where a conversation brings no system prompt."""

    def __init__(self, options: TemplateOptions, tokenizer: Tokenizer, *, system: str, answer: str = "### Response:\n"):
        super().__init__(options, tokenizer, end=tokenizer.eos_token)
        self.system, self.answer = system, answer

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        self.plain(conversation, ("system", "user", "assistant"))
        segments: list[Segment] = []
        if self.system and not (conversation.messages and conversation.messages[0].role == "system"):
            segments.append(Segment(self.system + "\n\n"))
        for index, message in enumerate(conversation.messages):
            content = self.content(index, message.content)
            if message.role == "system":
                segments += [content, Segment("\n\n")]
            elif message.role == "user":
                segments += [Segment("### Instruction:\n"), content, Segment("\n\n")]
            else:
                segments += [Segment(self.answer), content, *self.eos(index), Segment("\n\n")]
        if reply:
            segments.append(Segment(self.answer))
        return segments
