"""Rows with one column for the question and one for the answer, whatever they are called, both plain text.

(`prompt` and `completion` are TRL's names, which may hold messages too: the format prompt_completion.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.base.errors import DataError
from lorikeet.base.log import note
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.formats import _row
from lorikeet.data.formats._contract import Format

PAIRS = (
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("instruction", "response"),
    ("query", "response"),
    ("input", "output"),
    ("source", "target"),
)
QUESTIONS = ("prompt", "question", "query")


class Columns(Format):
    """A question column and an answer column."""

    kind: Literal["columns"] = Field("columns", description="Rows with a question column and an answer column.")
    prompt: str | None = Field(None, description="The question's column; by default found among common names.")
    response: str | None = Field(None, description="The answer's column; by default found among common names.")
    system: str | None = Field(None, description="The column of the system prompt; found where it is 'system'.")
    expects: ClassVar[str] = "a pair of columns such as " + ", ".join("/".join(pair) for pair in PAIRS)
    precedence: ClassVar[int] = 1

    def _pair(self, row: dict[str, Any]) -> tuple[str, str] | None:
        """The question's and the answer's column in `row`; None where there is no such pair."""
        for prompt, response in PAIRS:
            pair = (self.prompt or prompt, self.response or response)
            if pair[0] != pair[1] and pair[0] in row and pair[1] in row:
                return pair
        return None

    def recognises(self, row: dict[str, Any]) -> bool:
        # a lone question is recognised too: predict reads such files, and training names the missing answer
        return self._pair(row) is not None or any(isinstance(row.get(column), str) for column in QUESTIONS)

    def settle(self, rows: Sequence[dict[str, Any]], file: str) -> Format:
        pair = self._pair(rows[0]) if rows else None
        if self.prompt and self.response:
            return self
        if pair is None:  # questions alone
            asked = next((column for column in QUESTIONS if rows and column in rows[0]), None)
            return self.model_copy(update={"prompt": self.prompt or asked})
        system = self._system(rows[0], *pair)
        prompts = f", system prompts from '{system}'" if system else ""
        note(f"{file}: questions from the column '{pair[0]}', answers from '{pair[1]}'{prompts}")
        return self.model_copy(update={"prompt": pair[0], "response": pair[1], "system": system})

    def _system(self, row: dict[str, Any], *others: str | None) -> str | None:
        return self.system or ("system" if "system" in row and "system" not in others else None)

    def read(self, row: dict[str, Any], origin: Origin, *, reply: bool = True) -> Conversation:
        prompt, response = self._pair(row) or (self.prompt, self.response)
        if prompt is None and not reply:  # a file of questions alone
            prompt = next((column for column, _ in PAIRS if column in row), None)
        if prompt is None or (response is None and reply):
            raise DataError(
                f"{origin}: cannot tell which column is the question and which the answer",
                given=f"columns {' '.join(map(str, row))}",
                allowed=self.expects,
                try_="data.format='{kind: columns, prompt: NAME, response: NAME}'",
            )
        expects = f"{prompt} {response or ''} (data.format names them)"
        system_column = self._system(row, prompt, response)
        for column in (prompt, response if reply else None, system_column):
            if column is not None and column not in row:
                _row.wrong_columns(row, column, origin, expects, (prompt, response or ""))
        messages = []
        if system_column and (system := _row.text(row, system_column, origin, empty=True)):
            messages.append(Message("system", system))
        messages.append(Message("user", _row.text(row, prompt, origin)))
        if response is not None and (reply or row.get(response)):
            messages.append(Message("assistant", _row.text(row, response, origin)))
        return _row.conversation(messages, origin, reply=reply)
