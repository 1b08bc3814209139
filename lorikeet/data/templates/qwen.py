"""Qwen: ChatML with Qwen's own system prompt, tools between `<tools>`, calls in `<tool_call>`, and Qwen 3's thoughts.

Qwen 3 shows thoughts only in replies behind the last question and gives the last reply a thought even where it is
empty; so a conversation of several replies is laid out once per reply, as it is at inference.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment, number_as_text
from lorikeet.data.templates._environment import to_json
from lorikeet.data.templates._suits import MarkedOptions, has_word
from lorikeet.data.templates._thinking import CLOSE, OPEN, split_thought
from lorikeet.data.templates._tools import call_json
from lorikeet.tokens._contract import Tokenizer

SYSTEM = {
    "2": "You are a helpful assistant.",
    "2.5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "3": "",
}
_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_CALLS = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)


class Qwen(MarkedOptions):
    """ChatML as Qwen 1, 1.5 and 2 (`version: 2`), Qwen 2.5 and Qwen 3 write it."""

    kind: Literal["qwen"] = Field("qwen", description="ChatML with Qwen's system prompt, tools and thoughts")
    system: str | None = Field(
        None, description="The system prompt of conversations that bring none; null: the version's own, '' adds none."
    )
    version: Literal["2", "2.5", "3"] | None = Field(
        None, description="2 is also Qwen 1 and 1.5; null: what the tokenizer's tokens show."
    )
    thinking: bool = Field(
        True, description="Qwen 3: false writes every reply behind an empty thought, as enable_thinking=False does."
    )
    _version = field_validator("version", mode="before")(number_as_text)
    says_tools: ClassVar[bool] = True

    def resolved(self, tokenizer: Tokenizer) -> str:
        """The version asked for, else the newest whose tokens the tokenizer has."""
        if self.version is not None:
            return self.version
        if has_word(tokenizer, OPEN):
            return "3"
        return "2.5" if has_word(tokenizer, "<tool_call>") else "2"

    def marks(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        return "<|im_start|>", "<|im_end|>"

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return _Qwen(self, tokenizer, end="<|im_end|>")


class _Qwen(BoundTemplate):
    options: Qwen

    def __init__(self, options: Qwen, tokenizer: Tokenizer, *, end: str):
        super().__init__(options, tokenizer, end=end)
        self.version = options.resolved(tokenizer)

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        self.plain(conversation, ("system", "user", "assistant", "tool"))
        if self.version == "2":
            self.no_tools(conversation)
        messages = conversation.messages
        segments = self._system(conversation)
        asked = _last_question(messages) if self.version == "3" else -1
        for index, message in enumerate(messages):
            if message.role == "user":
                segments += [*self._open("user"), self.content(index, message.content), *self._close(index)]
            elif message.role == "tool":
                first = index == 0 or messages[index - 1].role != "tool"
                last = index == len(messages) - 1 or messages[index + 1].role != "tool"
                segments += [self.token("<|im_start|>"), Segment("user")] if first else []
                segments += [Segment("\n"), self.token("<tool_response>"), Segment("\n")]
                segments += [self.content(index, message.content), Segment("\n"), self.token("</tool_response>")]
                segments += self._close(index) if last else []
            elif message.role == "assistant":
                segments += self._reply(index, message, index > asked, index == len(messages) - 1)
        if reply:
            segments += self._open("assistant")
            if self.version == "3" and not self.options.thinking:
                segments += [self.token(OPEN), Segment("\n\n"), self.token(CLOSE), Segment("\n\n")]
        return segments

    def _open(self, role: str) -> list[Segment]:
        return [self.token("<|im_start|>"), Segment(role + "\n")]

    def _close(self, index: int) -> list[Segment]:
        return [self.token("<|im_end|>", message=index, end=True), Segment("\n")]

    def _system(self, conversation: Conversation) -> list[Segment]:
        own = bool(conversation.messages) and conversation.messages[0].role == "system"
        default = SYSTEM[self.version] if self.options.system is None else self.options.system
        text = self.content(0, conversation.messages[0].content) if own else Segment(default)
        tools: list[Segment] = []
        if conversation.tools:
            listed = "".join("\n" + to_json(tool) for tool in conversation.tools)
            gap = "\n\n" if text.text or self.version != "3" else ""
            # the tags among the explanation are the template's own words, and tokens where the model has them
            tools = [Segment(gap), *self.own_words(_TOOLS), Segment(listed), *self.own_words(_CALLS)]
        if not own and not text.text and not tools:
            return []
        end = self._close(0) if own else [self.token("<|im_end|>"), Segment("\n")]
        return [*self._open("system"), text, *tools, *end]

    def _reply(self, index: int, message: Message, behind_question: bool, last: bool) -> list[Segment]:
        text = message.content
        segments: list[Segment] = []
        if self.version == "3":
            thought, text = split_thought(text)
            thought = thought if self.options.thinking else ""
            if behind_question and (last or thought):
                text = text.lstrip("\n")
                # the tags may be the prompt's already, so they are no message's; layout.py finds the reply's share
                segments += [self.token(OPEN), Segment("\n"), self.content(index, thought), Segment("\n")]
                segments += [self.token(CLOSE), Segment("\n\n")]
        segments.append(self.content(index, text))
        for number, call in enumerate(message.tool_calls):
            # without a text, Qwen 2.5 begins a call on the header's own line end
            gap = "\n" if number or text else ""
            segments += [self.content(index, gap), self.token("<tool_call>", message=index)]
            segments += [self.content(index, f"\n{call_json(call)}\n"), self.token("</tool_call>", message=index)]
        return [*self._open("assistant"), *segments, *self._close(index)]


def _last_question(messages: tuple[Message, ...]) -> int:
    """The index of the last message of a user that is not a tool's answer in disguise."""
    for index in range(len(messages) - 1, -1, -1):
        text = messages[index].content
        disguised = text.startswith("<tool_response>") and text.endswith("</tool_response>")
        if messages[index].role == "user" and not disguised:
            return index
    return len(messages) - 1
