"""Preference pairs: the chosen side is learned, the rejected side is left aside, and that is said.

What both sides begin with, and everything in the other columns, is the prompt: context, not learned. `chosen` is a
text, a turn, or a list of turns; a list may be the whole conversation, then its prompt is taken once. The other
columns are a row of any other format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.base.errors import DataError
from lorikeet.base.kinds import kind_field
from lorikeet.base.log import note
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.formats import _row
from lorikeet.data.formats._contract import Format
from lorikeet.data.formats._turns import said
from lorikeet.data.formats.auto import PACKAGE, Auto, detect


class Preference(Format):
    """`chosen` and `rejected` replies to the prompt in the other columns."""

    kind: Literal["preference"] = Field("preference", description="Rows with a chosen and a rejected reply.")
    chosen: str = Field("chosen", description="The column of the better reply, which is learned.")
    rejected: str = Field("rejected", description="The column of the worse reply, which is left aside.")
    context: kind_field(PACKAGE, Format, without="preference") = Field(  # type: ignore[valid-type]
        Auto.model_validate({}),
        description="How the prompt's columns read: auto, or any other format with its options.",
    )
    expects: ClassVar[str] = "chosen rejected, and the prompt as any other format has it"
    precedence: ClassVar[int] = 9

    def recognises(self, row: dict[str, Any]) -> bool:
        return self.chosen in row and self.rejected in row

    def settle(self, rows: Sequence[dict[str, Any]], file: str) -> Format:
        note(f"{file}: preference pairs: '{self.chosen}' is learned, '{self.rejected}' is left aside")
        rest = [self._context(row) for row in rows]
        if not isinstance(self.context, Auto):
            return self.model_copy(update={"context": self.context.settle(rest, file)})
        found = detect(rest)
        return self.model_copy(update={"context": found[-1].settle(rest, file)}) if found else self

    def read(self, row: dict[str, Any], origin: Origin, *, reply: bool = True) -> Conversation:
        for column in (self.chosen, self.rejected):
            if column not in row:
                _row.wrong_columns(row, column, origin, self.expects, (self.chosen, self.rejected))
        chosen, rejected = (
            said(row[column], "assistant", column, origin, self.context) for column in (self.chosen, self.rejected)
        )
        common = _common(chosen, rejected)
        context = self._prompt(row, origin)
        if chosen[0].role == "assistant":
            head = _without_copy(context.messages, (chosen, rejected), origin)
        else:  # a whole conversation: the other columns may repeat its prompt
            head = _only_new(context.messages, chosen, origin)
        if not any(message.role == "user" for message in (*head, *chosen[:common])):
            raise DataError(
                f"{origin}: there is no prompt that '{self.chosen}' answers",
                given=f"columns {' '.join(map(str, row))}",
                allowed=f"a prompt column, or whole conversations in '{self.chosen}' and '{self.rejected}'",
                try_="data.format='{kind: preference, context: {kind: columns, prompt: NAME}}'",
            )
        prompt = [replace(message, trained=False) for message in (*head, *chosen[:common])]
        messages = prompt + (chosen[common:] if reply else [])
        return _row.conversation(messages, origin, reply=reply, tools=context.tools)

    def _context(self, row: dict[str, Any]) -> dict[str, Any]:
        return {column: value for column, value in row.items() if column not in (self.chosen, self.rejected)}

    def _prompt(self, row: dict[str, Any], origin: Origin) -> Conversation:
        rest, context = self._context(row), self.context
        if isinstance(context, Auto):
            found = detect([rest])
            if not found:  # the prompt is inside the chosen conversation, or missing: `read` looks
                return Conversation((), (), origin)
            context = found[-1]
        return context.read(rest, origin, reply=False)


def _common(chosen: list[Message], rejected: list[Message]) -> int:
    """How many messages both sides begin with; the chosen side's last reply is never among them."""
    replies = [number for number, message in enumerate(chosen) if message.role == "assistant"]
    count = 0
    while count < min(len(chosen), len(rejected), *replies[-1:]) and chosen[count] == rejected[count]:
        count += 1
    return count


def _without_copy(
    context: Sequence[Message], sides: tuple[list[Message], list[Message]], origin: Origin
) -> tuple[Message, ...]:
    """The prompt in front of a reply. Some files have the reply in a column of its own too."""
    if not context or context[-1].role != "assistant":
        return tuple(context)
    if [context[-1].content] not in [[message.content for message in side] for side in sides]:
        raise DataError(
            f"{origin}: the prompt ends with a reply that is neither side",
            given=context[-1].content[:120],
            allowed="a prompt that ends with the user's turn",
            try_="data.bad_rows=skip leaves such rows out and counts them",
        )
    return tuple(context[:-1])


def _only_new(context: Sequence[Message], chosen: list[Message], origin: Origin) -> tuple[Message, ...]:
    """Of the other columns' messages, the system prompt that the chosen conversation lacks; all others are in it."""
    system = tuple(message for message in context[:1] if message.role == "system")
    turns = [(message.role, message.content) for message in context[len(system) :]]
    own = [(message.role, message.content) for message in chosen if message.role != "system"]
    if turns != own[: len(turns)]:
        raise DataError(
            f"{origin}: the prompt and the chosen conversation differ",
            given=f"prompt {turns[0][1][:50]!r}, conversation {own[0][1][:50]!r}" if own else "no turns",
            allowed="a conversation that begins with the prompt, or a reply alone",
            try_="data.bad_rows=skip leaves such rows out and counts them",
        )
    return () if chosen[0].role == "system" else system
