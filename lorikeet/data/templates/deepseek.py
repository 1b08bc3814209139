"""DeepSeek: `User: ...` and `Assistant: ...` of the first models, `<｜User｜>` since V2.5, and R1's thoughts.

R1's prompt opens a thought that the reply has to close; earlier replies lose theirs. So a reply is learned as it is
written: its thought (an empty one where the data has none) and the answer, laid out once per reply.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment
from lorikeet.data.templates._suits import MarkedOptions, has_word
from lorikeet.data.templates._thinking import CLOSE, OPEN, split_thought
from lorikeet.tokens._contract import Tokenizer

USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
Version = Literal["llm", "v3", "r1"]


class DeepSeek(MarkedOptions):
    """deepseek-llm and V2 (`llm`), V2.5 and V3 (`v3`), R1 and its distillations (`r1`)."""

    kind: Literal["deepseek"] = Field("deepseek", description="<｜User｜> ... <｜Assistant｜> ..., or User: ...")
    system: str | None = Field(None, description="The system prompt of conversations that bring none; null adds none.")
    version: Version | None = Field(
        None, description="llm (also V2), v3, or r1 with thoughts; null: what the tokenizer's tokens show."
    )
    thinking: bool = Field(True, description="R1: false writes every reply behind an empty thought.")

    def resolved(self, tokenizer: Tokenizer) -> Version:
        """The version asked for, else the newest whose tokens the tokenizer has."""
        if self.version is not None:
            return self.version
        if USER not in tokenizer.control:
            return "llm"
        return "r1" if has_word(tokenizer, OPEN) else "v3"

    def marks(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        spelled = USER not in tokenizer.control if self.version is None else self.version == "llm"
        return () if spelled else (USER, ASSISTANT)

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return _DeepSeek(self, tokenizer, end=tokenizer.eos_token)


class _DeepSeek(BoundTemplate):
    options: DeepSeek

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        self.plain(conversation, ("system", "user", "assistant"))
        version = self.options.resolved(self.tokenizer)
        messages = conversation.messages
        segments: list[Segment] = []
        if self.options.system and not (messages and messages[0].role == "system"):
            segments.append(Segment(self.options.system + ("\n\n" if version == "llm" else "")))
        for index, message in enumerate(messages):
            if version == "llm":
                segments += self._spelled(index, message)
            elif message.role == "system":
                segments.append(self.content(index, message.content))
            elif message.role == "user":
                segments += [self.token(USER), self.content(index, message.content)]
            else:
                segments.append(self.token(ASSISTANT))
                # a question behind a reply makes it an earlier one, which loses its thought
                segments += self._answer(index, message, version, index == len(messages) - 1 and not reply)
        if reply:
            segments += [Segment("Assistant:")] if version == "llm" else [self.token(ASSISTANT)]
            if version == "r1":
                segments += [self.token(OPEN), Segment("\n")]
                segments += [] if self.options.thinking else [Segment("\n"), self.token(CLOSE), Segment("\n\n")]
        return segments

    def _spelled(self, index: int, message: Message) -> list[Segment]:
        content = self.content(index, message.content)
        if message.role == "assistant":
            return [Segment("Assistant:"), Segment(" "), content, *self.eos(index)]
        return [Segment("User: " if message.role == "user" else ""), content, Segment("\n\n")]

    def _answer(self, index: int, message: Message, version: Version, last: bool) -> list[Segment]:
        if version != "r1":
            return [self.content(index, message.content), *self.eos(index)]
        thought, answer = split_thought(message.content)
        if not last:
            # the published template cuts behind the tag and keeps the line ends that follow it
            return [self.content(index, message.content.split(CLOSE)[-1]), *self.eos(index)]
        thought = thought if self.options.thinking else ""
        # the tags may be the prompt's already, so they are no message's; layout.py finds the reply's share
        return [
            *(self.token(OPEN), Segment("\n"), self.content(index, thought), Segment("\n")),
            *(self.token(CLOSE), Segment("\n\n"), self.content(index, answer)),
            *self.eos(index),
        ]
