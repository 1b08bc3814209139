"""A row on its way through the cleaning steps: its turns, and everything else it had, so that it can be written back.

Steps see turns (who speaks, and the text) whatever the row looked like. What no step needs (ids, scores, a turn's own
keys) rides along untouched and stands in the output row as it stood in the input. Roles are not checked here: a row
that begins with the assistant is what the step `roles` is for.

The turns of a preference pair are its prompt and the chosen reply. The rejected one stands beside them; with the prompt
it makes a second conversation, which every step sees as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lorikeet.base.nouns import Origin
from lorikeet.data.formats import messages as messages_format
from lorikeet.data.formats import sharegpt as sharegpt_format
from lorikeet.data.steps._values import to_line

Layout = Literal["sharegpt", "messages", "alpaca", "text"]

CALL = sharegpt_format.CALL
CALLS = ("tool_calls", "function_call")  # a message's keys for calls, OpenAI's older one last
ROLES = {**messages_format.ROLES, **sharegpt_format.ROLES, "text": "text"}
_SHAREGPT = {"user": "human", "assistant": "gpt", "tool": "observation"}
_MESSAGES = {"human": "user", "gpt": "assistant", "observation": "tool"}


@dataclass(slots=True)
class Turn:
    """One turn. `speaker` is the name the file has; `input` the text of an alpaca row's input column."""

    speaker: str
    content: str
    input: str = ""
    rest: dict[str, Any] = field(default_factory=dict)  # the turn's other keys

    @property
    def role(self) -> str | None:
        """system, user, assistant, tool or text; None for a speaker that is none of them."""
        role = ROLES.get(self.speaker.lower())
        return "assistant" if role == CALL else role

    @property
    def calls(self) -> bool:
        """Whether the assistant calls a tool here, so that a tool speaks next."""
        return ROLES.get(self.speaker.lower()) == CALL or any(self.rest.get(key) for key in CALLS)

    @property
    def text(self) -> str:
        """What is said, with an alpaca row's input behind the instruction."""
        return "\n".join(part for part in (self.content, self.input) if part) if self.input else self.content

    def apply(self, change: Callable[[str], str]) -> bool:
        """Change the text, an input column for itself; whether that made a difference."""
        before = self.content, self.input
        self.content = change(self.content) if self.content else self.content
        self.input = change(self.input) if self.input else self.input
        return (self.content, self.input) != before


@dataclass(slots=True)
class Record:
    """A row as the steps see it."""

    origin: Origin
    turns: list[Turn]
    rest: dict[str, Any] = field(default_factory=dict)  # the row's other columns, its id among them
    layout: Layout = "sharegpt"
    column: str = "conversations"  # where a list of turns stands
    keys: tuple[str, str] = ("from", "value")  # of a turn in that list
    part: str = ""  # which piece of its row this is, where a step cut the row: "0", then "0.1" for a piece of a piece
    changed_by: str = ""  # the step that changed it last: a row counts once per step
    rejected: list[Turn] = field(default_factory=list)  # of a pair: the worse reply
    chosen: int = 0  # of a pair: how many turns at the end are the better reply

    def part_of(self, turns: list[Turn], number: int) -> Record:
        """A piece of this row with copies of the turns given; its id, if it has one, gets the piece's number."""
        part = f"{self.part}.{number}" if self.part else str(number)
        rest = (
            {**self.rest, "id": f"{self.rest['id']}_{number}"} if self.rest.get("id") is not None else dict(self.rest)
        )
        copies = [replace(turn, rest=dict(turn.rest)) for turn in turns]
        return replace(self, turns=copies, rest=rest, part=part)

    def other_side(self) -> Record:
        """Of a pair: copies of its prompt and the rejected reply, as a conversation."""
        turns = [replace(turn, rest=dict(turn.rest)) for turn in (*self.turns[: -self.chosen], *self.rejected)]
        return replace(self, turns=turns, rest=dict(self.rest), rejected=[], chosen=0)

    def pair_with(self, rejected: list[Turn]) -> None:
        """Make a pair of this conversation and another one; what both begin with is the prompt."""
        replies = [number for number, turn in enumerate(self.turns) if turn.role == "assistant"]
        most = min(len(self.turns), len(rejected) - 1, *replies[-1:])
        prompt = 0
        while prompt < most and self.turns[prompt] == rejected[prompt]:
            prompt += 1
        self.chosen, self.rejected = len(self.turns) - prompt, rejected[prompt:]

    def texts(self) -> list[str]:
        """Every turn's text."""
        return [turn.text for turn in self.turns]

    def as_row(self) -> dict[str, Any]:
        """The row to write."""
        if self.rejected:
            return self._pair()
        if self.layout == "alpaca":
            return self._alpaca()
        if self.layout == "text":
            return {**self.rest, self.column: "\n\n".join(self.texts())}
        speaker, words = self.keys
        turns = [{speaker: turn.speaker, words: turn.text, **turn.rest} for turn in self.turns]
        before = {"id": self.rest["id"]} if "id" in self.rest else {}
        return self._beside({**before, self.column: turns})

    def _beside(self, row: dict[str, Any]) -> dict[str, Any]:
        """`row` with the other columns; none of them takes the place of what steps have worked on."""
        return row | {name: value for name, value in self.rest.items() if name not in row}

    def make_room(self, *columns: str) -> list[str]:
        """Take out other columns of these names, where the turns will stand; as JSON, those that said anything."""
        taken = {name: self.rest.pop(name) for name in columns if self.rest.get(name) not in (None, "", [])}
        return [to_line({name: value}).decode().strip() for name, value in taken.items()]

    def _pair(self) -> dict[str, Any]:
        """The prompt as any row has it, and both replies: as texts where the prompt is columns of text, or as turns."""
        chosen = self.turns[-self.chosen :]
        row = replace(self, rejected=[]).as_row() if self.layout == "alpaca" else {}
        if "output" in row and len(chosen) == len(self.rejected) == 1:
            reply = row.pop("output")
            return {**row, "chosen": reply, "rejected": self.rejected[0].text}
        speaker, words = self.keys
        sides = [
            [{speaker: one.speaker, words: one.text, **one.rest} for one in side] for side in (chosen, self.rejected)
        ]
        row = replace(self, turns=self.turns[: -self.chosen], rejected=[]).as_row()
        bare = self.layout == "sharegpt"  # there a reply is a turn, not a list with one
        return row | {
            name: side[0] if bare and len(side) == 1 else side for name, side in zip(("chosen", "rejected"), sides)
        }

    def _alpaca(self) -> dict[str, Any]:
        """system, history, instruction, input, output; a row of turns that are no pairs keeps them as a list."""
        lost = bool(self.turns) and self.turns[-1].role == "user"  # the answer, which may have been empty all along
        turns = [*self.turns, Turn("assistant", "")] if lost else list(self.turns)
        system = [turns.pop(0)] if turns and turns[0].role == "system" else []
        roles = [turn.role for turn in turns]
        if not turns or roles != ["user", "assistant"] * (len(turns) // 2) or any(turn.calls for turn in turns):
            return {**self.rest, "conversations": [{"from": turn.speaker, "value": turn.text} for turn in self.turns]}
        question, answer = turns[-2:]
        pairs = [[left.text, right.text] for left, right in zip(turns[:-2:2], turns[1:-2:2])]
        row = {"instruction": question.content, "input": question.input, "output": answer.content}
        row |= {"system": system[0].text} if system else {}
        return self._beside({**row, **({"history": pairs} if pairs else {})})

    def to_layout(self, layout: Literal["sharegpt", "messages"]) -> None:
        """Write it as a list of turns from now on, with that layout's names of roles."""
        names = _MESSAGES if layout == "messages" else _SHAREGPT
        for turn in (*self.turns, *self.rejected):
            turn.content, turn.input = turn.text, ""
            role = ROLES.get(turn.speaker.lower(), turn.speaker)
            turn.speaker = names.get(role, role)
        self.layout = layout
        self.column = "messages" if layout == "messages" else "conversations"
        self.keys = ("role", "content") if layout == "messages" else ("from", "value")

    def packed(self) -> list[Any]:
        """Plain values that `unpacked` makes the record of again: between processes, and in the journal."""
        origin = [self.origin.file, self.origin.row, self.origin.line]
        turns = [[turn.speaker, turn.content, turn.input, turn.rest] for turn in (*self.turns, *self.rejected)]
        pair = [len(self.rejected), self.chosen]
        return [origin, turns, self.rest, self.layout, self.column, self.keys, pair, self.part]


def unpacked(values: list[Any]) -> Record:
    """The record that `packed` gave these values for."""
    origin, packed, rest, layout, column, keys, (others, chosen), part = values
    turns = [Turn(*turn) for turn in packed]
    rejected = [turns.pop() for _ in range(others)][::-1]
    return Record(Origin(*origin), turns, rest, layout, column, tuple(keys), part, rejected=rejected, chosen=chosen)
