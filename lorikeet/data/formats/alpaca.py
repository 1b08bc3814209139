"""Alpaca rows: instruction, input, output, with optional system, history and tools columns.

The question is the instruction, then a line end and the input where there is one. Columns of other names are options,
called as LLaMA-Factory's dataset_info.json calls them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.formats import _row, _tools
from lorikeet.data.formats._contract import Format


class Alpaca(Format):
    """`instruction`, optional `input`, `output`; optional `system`, `history` ([[question, answer], ...]), `tools`."""

    kind: Literal["alpaca"] = Field("alpaca", description="Rows with instruction, input and output.")
    prompt: str = Field("instruction", description="The column of the instruction.")
    query: str = Field("input", description="The column of the input, which follows the instruction.")
    response: str = Field("output", description="The column of the answer.")
    system: str = Field("system", description="The column of the system prompt, where there is one.")
    history: str = Field("history", description="The column of earlier turns: a list of [question, answer].")
    tools: str = Field("tools", description="The column of the tools: a list, or the same as JSON text.")
    expects: ClassVar[str] = "instruction output, optional: input system history tools"
    precedence: ClassVar[int] = 2

    def recognises(self, row: dict[str, Any]) -> bool:
        return self.prompt in row and not {"response", "answer"} & row.keys()

    def read(self, row: dict[str, Any], origin: Origin, *, reply: bool = True) -> Conversation:
        names = (self.prompt, self.query, self.response)
        for column in (self.prompt, self.response) if reply else (self.prompt,):
            if column not in row:
                _row.wrong_columns(row, column, origin, self._expects(), names)
        messages = []
        if system := _row.text(row, self.system, origin, empty=True):
            messages.append(Message("system", system))
        messages += self._history(row.get(self.history), origin)
        instruction, extra = (_row.text(row, column, origin, empty=True) for column in (self.prompt, self.query))
        question = "\n".join(part for part in (instruction, extra) if part)
        context = extra if instruction and extra else None
        messages.append(Message("user", _row.checked(question, f"column '{self.prompt}'", origin), context=context))
        if reply or row.get(self.response):
            messages.append(Message("assistant", _row.text(row, self.response, origin)))
        tools = _tools.tools(row.get(self.tools), f"column '{self.tools}'", origin)
        return _row.conversation(messages, origin, reply=reply, tools=tools)

    def _expects(self) -> str:
        return f"{self.prompt} {self.response}, optional: {self.query} {self.system} {self.history} {self.tools}"

    def _history(self, history: object, origin: Origin) -> list[Message]:
        if history is None or history == "":
            return []
        if not isinstance(history, list) or not all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in history
        ):
            raise DataError(
                f"{origin}: column '{self.history}' must be a list of pairs",
                given=repr(history)[:120],
                allowed='[["question", "answer"], ...]',
            )
        return [
            Message(role, _row.checked(side, f"{self.history} {number} ({role})", origin))
            for number, pair in enumerate(history)
            for role, side in zip(("user", "assistant"), pair)
        ]
