"""Who speaks when: a conversation begins with the user, ends with the assistant, and they take turns.

What does not is repaired or dropped, as the options say. Turns that are left out of a row that stays are on the record
as well. Tools may speak between two turns of the assistant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from pydantic import Field

from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import Record, Turn

# who may follow whom; an assistant that called a tool is followed by it
_NEXT = {"user": {"assistant"}, "assistant": {"user", "tool"}, "tool": {"tool", "assistant"}}


class Roles(Step):
    """From the user's first turn to the assistant's last, in turn; a system prompt may stand before them."""

    kind: Literal["roles"] = "roles"
    ends: Literal["trim", "drop"] = Field(
        "trim", description="Turns before the user's first and behind the assistant's last: leave them out, or drop "
        "the conversation."
    )  # fmt: skip
    repeated: Literal["drop", "join", "first", "last"] = Field(
        "drop",
        description="One speaker twice in a row: drop the conversation, join the two turns, or keep the first or last.",
    )
    empty: Literal["cut", "drop"] = Field(
        "cut", description="A turn without text: the conversation ends before its exchange, or is dropped."
    )
    min_turns: int = Field(2, ge=1, description="Fewer turns than this, the system prompt aside: dropped.")

    def each(self, record: Record, log: Log) -> Iterable[Record]:
        found = _Found(record.turns)
        fault = self._fault(found)
        if fault is not None:
            log.drop(record, *fault)
            return []
        for reason, out in found.cuts:
            log.cut(record, out, reason)
        if found.joined:
            log.change(record, "turns joined")
        record.turns = found.turns
        return [record]

    def _fault(self, found: _Found) -> tuple[str, str | None] | None:
        """Why the record cannot stay, or None once its turns are in order."""
        unknown = next((turn.speaker for turn in found.turns if turn.role in (None, "text")), None)
        if unknown is not None:
            return "unknown role", repr(unknown)
        system = found.turns[:1] if found.turns and found.turns[0].role == "system" else []
        turns = found.turns[len(system) :]
        blank = next((number for number, turn in enumerate(turns) if _is_blank(turn)), len(turns))
        if blank < len(turns):
            if self.empty == "drop":
                return "empty turn", f"turn {blank}"
            found.cuts.append(("behind an empty turn", turns[blank:]))
            turns = turns[:blank]
        first = next((number for number, turn in enumerate(turns) if turn.role == "user"), len(turns))
        last = next((len(turns) - number for number, turn in enumerate(reversed(turns)) if _is_reply(turn)), 0)
        outside = turns[:first] + turns[max(first, last) :]
        if outside and self.ends == "drop" and not found.cuts:
            return "wrong ends", " ".join(turn.speaker for turn in (turns[0], turns[-1]))
        if outside:
            found.cuts.append(("before the user or behind the reply", outside))
        turns = self._in_turn(turns[first : max(first, last)], found)
        if len(turns) < self.min_turns:
            return "too few turns", f"{len(turns)}"
        wrong = any(right.role not in _NEXT.get(left.role or "", ()) for left, right in pairwise(turns))
        if wrong:
            return "not in turn", " ".join(turn.speaker for turn in turns)[:200]
        found.turns = system + turns
        return None

    def _in_turn(self, turns: list[Turn], found: _Found) -> list[Turn]:
        """The turns with repeated speakers settled, where they are not to be dropped."""
        if self.repeated == "drop":
            return turns
        kept: list[Turn] = []
        for turn in turns:
            same = bool(kept) and kept[-1].role == turn.role and turn.role != "tool"
            if not same or kept[-1].calls or turn.calls:
                kept.append(turn)
            elif self.repeated == "join":
                joined = "\n\n".join((kept[-1].text, turn.text))
                kept[-1] = Turn(turn.speaker, joined, rest={**turn.rest, **kept[-1].rest})
                found.joined = True
            else:
                out = turn if self.repeated == "first" else kept[-1]
                kept[-1] = kept[-1] if self.repeated == "first" else turn
                found.cuts.append(("one speaker twice", [out]))
        return kept


@dataclass
class _Found:
    """What is to become of a record, told to the log only once it is sure to stay."""

    turns: list[Turn]
    cuts: list[tuple[str, list[Turn]]] = field(default_factory=list)
    joined: bool = False


def _is_blank(turn: Turn) -> bool:
    """Whether nothing is said; what a tool answers, and a call to one, may be without text."""
    return turn.role != "tool" and not turn.calls and not turn.text.strip()


def _is_reply(turn: Turn) -> bool:
    return turn.role == "assistant"  # a call too: rows of tools often end with it, and it is what they teach
