"""Rows with `prompt` and `completion`, as TRL and OpenAI's older files have them: texts, or lists of messages.

Only the completion is learned: replies inside a prompt are context. Two texts are a question and its answer under the
template; with `data.template=raw` they follow each other with nothing between.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.formats import _row, _tools
from lorikeet.data.formats._contract import Format
from lorikeet.data.formats._turns import is_turns, said


class PromptCompletion(Format):
    """`prompt` and `completion`, each a text or a list of messages; optional `system` and `tools`."""

    kind: Literal["prompt_completion"] = Field(
        "prompt_completion", description="Rows with prompt and completion, texts or lists of messages."
    )
    prompt: str = Field("prompt", description="The column of the prompt: a text, or a list of messages.")
    completion: str = Field("completion", description="The column of what is learned: a text, or a list of messages.")
    system: str = Field("system", description="The column of the system prompt, where there is one.")
    tools: str = Field("tools", description="The column of the tools: a list, or the same as JSON text.")
    expects: ClassVar[str] = "prompt completion (texts or lists of messages), optional: system tools"
    precedence: ClassVar[int] = 2

    def recognises(self, row: dict[str, Any]) -> bool:
        return self.prompt in row and (self.completion in row or is_turns(row[self.prompt]))

    def read(self, row: dict[str, Any], origin: Origin, *, reply: bool = True) -> Conversation:
        for column in (self.prompt, self.completion) if reply else (self.prompt,):
            if column not in row:
                _row.wrong_columns(row, column, origin, self.expects, (self.prompt, self.completion))
        if row.get("label") is False:  # TRL's unpaired preferences
            raise DataError(
                f"{origin}: the completion is marked as a bad one",
                given="label false",
                allowed="completions to learn: label true, or no label",
                try_="data.bad_rows=skip leaves such rows out and counts them",
            )
        messages = [
            replace(message, trained=False) if message.role == "assistant" else message
            for message in said(row[self.prompt], "user", self.prompt, origin)
        ]
        if system := _row.text(row, self.system, origin, empty=True):
            messages.insert(0, Message("system", system))
        if reply or row.get(self.completion):
            messages += self._completion(row[self.completion], origin)
        tools = _tools.tools(row.get(self.tools), f"column '{self.tools}'", origin)
        return _row.conversation(messages, origin, reply=reply, tools=tools)

    def _completion(self, value: object, origin: Origin) -> list[Message]:
        found = said(value, "assistant", self.completion, origin)
        if not any(message.role == "assistant" for message in found):
            raise DataError(
                f"{origin}: column '{self.completion}' has no assistant message",
                given=f"roles {' '.join(message.role for message in found)}",
                allowed="what the assistant answers to the prompt",
            )
        return found
