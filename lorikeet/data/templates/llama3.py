"""Llama 3: a header with the role, two line ends, the stripped text, `<|eot_id|>`.

Since 3.1 a system turn always stands first, with a date, and tools are listed as JSON in the first question; a call is
a reply of JSON alone, a tool's result a turn of the role `ipython`. The date is an option, not today's: what a run
sees must not change overnight.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment, number_as_text
from lorikeet.data.templates._environment import to_json
from lorikeet.data.templates._suits import MarkedOptions, has_word
from lorikeet.data.templates._tools import call_json
from lorikeet.tokens._contract import Tokenizer

_ASK = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    'answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of '
    "argument name and its value}.Do not use variables.\n\n"
)


class Llama3(MarkedOptions):
    """`<|start_header_id|>role<|end_header_id|>`, of Llama 3, 3.1, 3.2 and 3.3."""

    kind: Literal["llama3"] = Field("llama3", description="<|start_header_id|>role<|end_header_id|> ... <|eot_id|>")
    system: str | None = Field(None, description="The system prompt of conversations that bring none; null adds none.")
    version: Literal["3", "3.1"] | None = Field(
        None, description="3.1 has dates and tools (also 3.2 and 3.3); null: what the tokenizer's tokens show."
    )
    date: str = Field("26 Jul 2024", min_length=1, description="The date in the system turn since 3.1.")
    says_tools: ClassVar[bool] = True
    _version = field_validator("version", mode="before")(number_as_text)

    def resolved(self, tokenizer: Tokenizer) -> str:
        """The version asked for, else the one whose tokens the tokenizer has."""
        return self.version or ("3.1" if has_word(tokenizer, "<|eom_id|>") else "3")

    def marks(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        return "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return _Llama3(self, tokenizer, end="<|eot_id|>")


class _Llama3(BoundTemplate):
    options: Llama3

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        self.plain(conversation, ("system", "user", "assistant", "tool"))
        version = self.options.resolved(self.tokenizer)
        if version == "3":
            self.no_tools(conversation)
        turns = list(enumerate(conversation.messages))
        system = turns.pop(0)[1] if turns and turns[0][1].role == "system" else None
        segments = self._system(system, version, bool(conversation.tools))
        for place, (index, message) in enumerate(turns):
            if place == 0 and conversation.tools:
                listed = "".join(to_json(tool, indent=4) + "\n\n" for tool in conversation.tools)
                segments += [*self._header("user"), Segment(_ASK + listed)]
                segments += [self.content(index, message.content.strip()), self._end(index)]
            else:
                segments += self._turn(conversation, index, message)
        if conversation.tools and not turns:
            raise self.cannot(conversation, "tools stand in the first question, and there is none")
        return segments + (self._header("assistant") if reply else [])

    def _system(self, system: Message | None, version: str, tools: bool) -> list[Segment]:
        dated = f"Cutting Knowledge Date: December 2023\nToday Date: {self.options.date}\n\n"
        own = ("Environment: ipython\n" if tools else "") + dated if version != "3" else ""
        if not own and system is None and not self.options.system:
            return []
        if system is None:
            text = Segment((self.options.system or "").strip())
            return [*self._header("system"), Segment(own), text, self.token("<|eot_id|>")]
        return [*self._header("system"), Segment(own), self.content(0, system.content.strip()), self._end(0)]

    def _turn(self, conversation: Conversation, index: int, message: Message) -> list[Segment]:
        if message.tool_calls:
            if len(message.tool_calls) > 1 or message.content.strip():
                raise self.cannot(conversation, "a reply is one call of a tool, or text; not both and not two calls")
            text = call_json(message.tool_calls[0], "parameters")
        else:
            # a result is quoted as JSON, which is what the published template makes of a string
            text = to_json(message.content) if message.role == "tool" else message.content.strip()
        role = "ipython" if message.role == "tool" else message.role
        return [*self._header(role), self.content(index, text), self._end(index)]

    def _header(self, role: str) -> list[Segment]:
        return [self.token("<|start_header_id|>"), Segment(role), self.token("<|end_header_id|>"), Segment("\n\n")]

    def _end(self, index: int) -> Segment:
        return self.token("<|eot_id|>", message=index, end=True)
