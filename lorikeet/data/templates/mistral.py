"""Mistral instruct: `[INST]question[/INST]answer</s>`, with the tool markup of v0.3 and later.

What differs between versions are spaces, whether `[INST]` is a control token, and where the system prompt stands: in
the first question (v1), in the last one (v3, tekken), in a turn of its own (v7). In the last question means that the
prompt of each reply differs, so such conversations are laid out once per reply.
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment
from lorikeet.data.templates._environment import to_json
from lorikeet.data.templates._suits import MarkedOptions
from lorikeet.data.templates._tools import called, described
from lorikeet.tokens._contract import Tokenizer

Version = Literal["v1", "v3", "tekken", "v7"]


class Mistral(MarkedOptions):
    """`[INST]` and `[/INST]` of Mistral 7B v0.1 and v0.2 (v1), v0.3 (v3), Nemo (tekken) and Small 3 (v7)."""

    kind: Literal["mistral"] = Field("mistral", description="[INST] ... [/INST] ... </s>")
    system: str | None = Field(None, description="The system prompt of conversations that bring none; null adds none.")
    version: Version | None = Field(None, description="v1, v3, tekken or v7; null: what the tokenizer's tokens show.")
    says_tools: ClassVar[bool] = True

    def resolved(self, tokenizer: Tokenizer) -> Version:
        """The version asked for, else the one this tokenizer was made for."""
        if self.version is not None:
            return self.version
        if "[INST]" not in tokenizer.control:
            return "v1"
        if "[SYSTEM_PROMPT]" in tokenizer.control:
            return "v7"
        return "tekken" if any(name.startswith("<SPECIAL_") for name in tokenizer.control) else "v3"

    def marks(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        version = self.resolved(tokenizer)
        if version == "v1":
            return ()
        return ("[INST]", "[/INST]", *(("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]") if version == "v7" else ()))

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return _Mistral(self, tokenizer, end=tokenizer.eos_token)


class _Mistral(BoundTemplate):
    options: Mistral

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        self.plain(conversation, ("system", "user", "assistant", "tool"))
        version = self.options.resolved(self.tokenizer)
        if version in ("v1", "v7"):
            self.no_tools(conversation)
        system, turns = self.turn_by_turn(conversation)
        prompt = self._system(system)
        questions = [index for index, message in turns if message.role == "user"]
        home = (questions[0] if version == "v1" else questions[-1]) if questions else -1
        segments: list[Segment] = []
        if version == "v7" and prompt:
            segments = [self.token("[SYSTEM_PROMPT]"), *prompt, self.token("[/SYSTEM_PROMPT]")]
        calls = _Ids()
        space = " " if version in ("v1", "v3") else ""
        for index, message in turns:
            if message.role == "user":
                if index == home and conversation.tools:
                    segments += self._tools(conversation, space)
                own = [*prompt, Segment("\n\n")] if index == home and prompt and version != "v7" else []
                segments += [Segment(" " if version == "v1" else ""), self.token("[INST]"), Segment(space), *own]
                segments += [self.content(index, message.content), Segment(" " if version == "v1" else "")]
                segments.append(self.token("[/INST]"))
            elif message.role == "tool":
                told = f'{{"content": {message.content}, "call_id": "{calls.answered(message)}"}}'
                segments += [self.token("[TOOL_RESULTS]"), Segment(space), self.content(index, told)]
                segments.append(self.token("[/TOOL_RESULTS]"))
            elif message.tool_calls:
                segments += [*self._calls(conversation, index, message, calls, space), *self.eos(index)]
            else:
                text = message.content.strip() if version == "v3" else message.content
                segments += [Segment(space), self.content(index, text), *self.eos(index)]
        return segments

    def _system(self, system: Message | None) -> list[Segment]:
        if system is not None:
            return [self.content(0, system.content)]
        return [Segment(self.options.system)] if self.options.system else []

    def _tools(self, conversation: Conversation, space: str) -> list[Segment]:
        tools = [{"type": "function", "function": _shown(described(tool)["function"])} for tool in conversation.tools]
        return [self.token("[AVAILABLE_TOOLS]"), Segment(space + to_json(tools)), self.token("[/AVAILABLE_TOOLS]")]

    def _calls(
        self, conversation: Conversation, index: int, message: Message, calls: _Ids, space: str
    ) -> list[Segment]:
        if message.content.strip():
            raise self.cannot(conversation, "a reply that calls tools has no text beside them")
        said = []
        for call in message.tool_calls:
            name, arguments = called(call)
            said.append({"name": name, "arguments": arguments, "id": calls.asked(call.get("id"))})
        return [self.token("[TOOL_CALLS]", message=index), self.content(index, space + to_json(said))]


def _shown(function: Any) -> dict[str, Any]:
    """A tool without what it returns, which Mistral's templates leave out."""
    return {key: value for key, value in function.items() if key != "return"}


class _Ids:
    """Nine letters and digits for each call, as these models know ids; a result without one answers in order."""

    def __init__(self) -> None:
        self.count, self.open = 0, []  # type: int, list[str]

    def asked(self, given: object) -> str:
        self.count += 1
        self.open.append(_nine(given if isinstance(given, str) else f"call {self.count}"))
        return self.open[-1]

    def answered(self, message: Message) -> str:
        """The id of the call that a tool's message answers."""
        if message.tool_call_id is not None:
            return _nine(message.tool_call_id)
        return self.open.pop(0) if self.open else _nine(message.name or "")


def _nine(text: str) -> str:
    if len(text) == 9 and text.isascii() and text.isalnum():
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:9]
