"""Turns under `### ...:` headings: what alpaca and its relatives have in common.

The wording is that of tatsu-lab/stanford_alpaca: a row with an input has a heading for it and another sentence in
front. LLaMA-Factory puts the input behind the instruction instead (`input_heading: false`). Where a conversation goes
on, the same headings follow again.
"""

from __future__ import annotations

from pydantic import Field

from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment, TemplateOptions
from lorikeet.tokens._contract import Tokenizer

PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


class HeadedOptions(TemplateOptions):
    """What alpaca and its relatives can be told."""

    input_heading: bool = Field(
        True, description="An alpaca row's input stands under ### Input:; false puts it behind the instruction."
    )


class Headed(BoundTemplate):
    """Turns under the headings of alpaca and its relatives. `answer` is the heading of a reply with what follows it
    before the reply's text; `system` stands first where a conversation brings no system prompt."""

    options: HeadedOptions

    def __init__(self, options: HeadedOptions, tokenizer: Tokenizer, *, system: str, answer: str = "### Response:\n"):
        super().__init__(options, tokenizer, end=tokenizer.eos_token)
        self.system, self.answer = system, answer

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        self.plain(conversation, ("system", "user", "assistant"))
        segments: list[Segment] = []
        messages = conversation.messages
        if self.system and not (messages and messages[0].role == "system"):
            headed = self.system == PREAMBLE and messages and self._context(messages[0])
            segments.append(Segment((WITH_INPUT if headed else self.system) + "\n\n"))
        for index, message in enumerate(messages):
            if message.role == "system":
                segments += [self.content(index, message.content), Segment("\n\n")]
            elif message.role == "user":
                segments += self._question(index, message)
            else:
                segments += [Segment(self.answer), self.content(index, message.content)]
                segments += [*self.eos(index), Segment("\n\n")]
        if reply:
            segments.append(Segment(self.answer))
        return segments

    def _question(self, index: int, message: Message) -> list[Segment]:
        context, question = self._context(message), message.content
        if not context:
            return [Segment("### Instruction:\n"), self.content(index, question), Segment("\n\n")]
        return [
            Segment("### Instruction:\n"),
            self.content(index, question.removesuffix(context).removesuffix("\n")),
            Segment("\n\n### Input:\n"),
            self.content(index, context),
            Segment("\n\n"),
        ]

    def _context(self, message: Message) -> str | None:
        return message.context if self.options.input_heading else None
