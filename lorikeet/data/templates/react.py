"""ReAct, Qwen 1's function calling: tools are told before a question; a reply thinks, acts, and waits to observe.

    Question: ...
    Thought: ...  Action: a tool  Action Input: its arguments  Observation:      the reply ends here
    (the tool's result)  Thought: ...  Final Answer: ...

All of it stands in one turn of ChatML. A result is context; the word `Observation:` before it is the model's, and
stops it. As Qwen's server does, the tools stand before the last question, so each reply is laid out by itself.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.templates._bound import BoundTemplate
from lorikeet.data.templates._contract import Segment
from lorikeet.data.templates._environment import to_json
from lorikeet.data.templates._suits import MarkedOptions
from lorikeet.data.templates._tools import called, described
from lorikeet.tokens._contract import Tokenizer

STOP = "\nObservation:"
FINAL = "Thought: I now know the final answer.\nFinal Answer: "


class React(MarkedOptions):
    """Question, Thought, Action, Action Input, Observation, Final Answer, in ChatML's turns."""

    kind: Literal["react"] = Field("react", description="ChatML with tools as Thought / Action / Observation")
    system: str = Field(
        "You are a helpful assistant.", description="The system prompt of conversations that bring none."
    )
    tools_at: Literal["last", "first"] = Field(
        "last",
        description="The question behind the tools: the last, as Qwen's server sends them, or the first.",
    )
    says_tools: ClassVar[bool] = True

    def marks(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        return "<|im_start|>", "<|im_end|>"

    def bind(self, tokenizer: Tokenizer) -> BoundTemplate:
        return _React(self, tokenizer, end="<|im_end|>", stops=(STOP,))


class _React(BoundTemplate):
    options: React

    def turns(self, conversation: Conversation, reply: bool) -> list[Segment]:
        self.plain(conversation, ("system", "user", "assistant", "tool"))
        messages = conversation.messages
        segments: list[Segment] = []
        if not (messages and messages[0].role == "system"):
            segments = [*self._open("system"), Segment(self.options.system), self.token("<|im_end|>"), Segment("\n")]
        questions = [index for index, message in enumerate(messages) if message.role == "user"]
        told = questions[0 if self.options.tools_at == "first" else -1] if questions else -1
        if conversation.tools and not questions:
            raise self.cannot(conversation, "tools stand before a question, and there is none")
        before = ""  # the role of the message before, where its turn is still open
        for index, message in enumerate(messages):
            text = _trimmed(message.content)
            if message.role == "tool":
                if before != "assistant":
                    raise self.cannot(conversation, "a tool's result has to follow the call of a tool")
                segments.append(self.content(index, " " + text))
                before = "tool"
            elif message.role == "assistant":
                segments += [Segment("\nThought:")] if before else self._open("assistant")
                said = self._said(conversation, message, text)
                segments.append(self.content(index, said.removeprefix("Thought:") if before else said))
                segments += self._end(index, bool(message.tool_calls))
                before = "assistant" if message.tool_calls else ""
            else:
                question = f"{_instruction(conversation.tools)}\n\nQuestion: " if index == told else ""
                segments += [*self._open(message.role), Segment(question if conversation.tools else "")]
                segments += [self.content(index, text), *self._end(index, False)]
                before = ""
        if reply:
            segments += [Segment("\nThought:")] if before else self._open("assistant")
        return segments

    def _open(self, role: str) -> list[Segment]:
        return [self.token("<|im_start|>"), Segment(role + "\n")]

    def _end(self, index: int, calls: bool) -> list[Segment]:
        if calls:
            return [self.content(index, STOP, "end")]
        return [self.token("<|im_end|>", message=index, end=True), Segment("\n")]

    def _said(self, conversation: Conversation, message: Message, text: str) -> str:
        if not message.tool_calls:
            return FINAL + text if conversation.tools else text
        if len(message.tool_calls) > 1:
            raise self.cannot(conversation, "a reply acts once, and this one calls several tools")
        name, arguments = called(message.tool_calls[0])
        thought = text if text.startswith("Thought:") else f"Thought: {text}"
        said = arguments if isinstance(arguments, str) else to_json(arguments)
        return f"{thought}\nAction: {name}\nAction Input: {said}"


def _trimmed(text: str) -> str:
    return text.lstrip("\n").rstrip()


def _instruction(tools: tuple[dict[str, Any], ...]) -> str:
    """What the tools are and how to use them, in the words of Qwen's function calling."""
    lines, names = [], []
    for tool in tools:
        function = described(tool)["function"]
        name = function.get("name_for_model", function.get("name", ""))
        human = function.get("name_for_human", function.get("name", ""))
        purpose = function.get("description_for_model", function.get("description", ""))
        lines.append(
            f"{name}: Call this tool to interact with the {human} API. What is the {human} API useful for? {purpose} "
            f"Parameters: {to_json(function.get('parameters', {}))}"
        )
        names.append(name)
    return (
        "Answer the following questions as best you can. You have access to the following APIs:\n\n"
        + "\n\n".join(lines)
        + "\n\nUse the following format:\n\nQuestion: the input question you must answer\n"
        "Thought: you should always think about what to do\n"
        f"Action: the action to take, should be one of [{', '.join(names)}]\n"
        "Action Input: the input to the action\nObservation: the result of the action\n"
        "... (this Thought/Action/Action Input/Observation can be repeated zero or more times)\n"
        "Thought: I now know the final answer\nFinal Answer: the final answer to the original input question\n\nBegin!"
    )
