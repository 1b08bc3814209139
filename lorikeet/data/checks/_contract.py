"""What every check does: a question asked of each row, and of all rows once they are through.

A check is a file of this folder (its name is the check's), or someone's own .py file, with one subclass of `Check`.
What it remembers from row to row is a few bytes a row at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from lorikeet.base.nouns import Message, Origin
from lorikeet.data.ledger import entries
from lorikeet.data.pipeline import DataOptions
from lorikeet.data.provenance import Spelled
from lorikeet.data.truncate import Encoder, Piece
from lorikeet.data.walk import Walked

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. `message`: its number in the conversation; `level`: where it is not the check's own."""

    origin: Origin
    what: str
    message: int | None = None
    level: Level | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """What is checked against. Without a model there is no encoder."""

    options: DataOptions
    encoder: Encoder | None
    seed: int = 0  # of the run: it decides which rows a data.validation=0.1 holds out


class Row:
    """A row as the checks see it."""

    def __init__(self, walked: Walked, encoder: Encoder | None):
        self.walked, self._encoder = walked, encoder
        self.origin, self.side, self.error = walked.origin, walked.side, walked.error

    @property
    def messages(self) -> tuple[Message, ...]:
        """Of its conversation; none where the row could not be read."""
        return self.walked.conversation.messages if self.walked.conversation is not None else ()

    @property
    def tools(self) -> tuple[dict[str, Any], ...]:
        """What its conversation offers: the same question with other tools is another one."""
        return self.walked.conversation.tools if self.walked.conversation is not None else ()

    @cached_property
    def kept(self) -> list[Piece]:
        """The examples that are trained on."""
        return [] if self.error is not None else [piece for piece in self.walked.pieces if piece.dropped is None]

    @cached_property
    def spelled(self) -> list[list[Spelled]]:
        """For each example that is trained on, what each of its tokens spells."""
        if self._encoder is None or self.walked.conversation is None:
            return []
        return [entries(piece, self.walked.conversation, self._encoder) for piece in self.kept]

    def replies(self) -> Iterator[tuple[int, Message]]:
        """The assistant's messages with their numbers."""
        return ((index, message) for index, message in enumerate(self.messages) if message.role == "assistant")

    def found(self, what: str, message: int | None = None, level: Level | None = None) -> Finding:
        """A finding of this row."""
        return Finding(self.origin, what, message, level)


class Check:
    """One check. The docstring of a kind says what it looks for."""

    level: ClassVar[Level] = "warning"
    reason: ClassVar[str]  # why it matters
    fix: ClassVar[str]  # what to do about it
    needs_model: ClassVar[bool] = False  # whether it looks at tokens

    def __init__(self, setting: Setting):
        self.setting = setting

    def row(self, row: Row) -> Iterator[Finding]:
        """What is wrong with this row."""
        return iter(())

    def end(self) -> Iterator[Finding]:
        """What only all rows together show."""
        return iter(())

    def facts(self) -> dict[str, Any]:
        """Figures for the report, whether anything is wrong or not; read after `end`."""
        return {}


def excerpt(text: str, at: int = 0, width: int = 60) -> str:
    """A few words of `text` around character `at`, on one line."""
    start = max(0, at - width // 3)
    piece = text[start : start + width]
    return ("..." if start else "") + " ".join(piece.split()) + ("..." if start + width < len(text) else "")
