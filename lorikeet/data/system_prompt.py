"""The system prompt that conversations share: who was trained behind one has to be asked behind it."""

from __future__ import annotations

from collections.abc import Collection

from lorikeet.base.nouns import Conversation

LOOKED_AT = 32  # rows at the start of each file: enough to see whether they differ


def system_of(conversation: Conversation) -> str | None:
    """What it begins with, where that is a system prompt."""
    first = next(iter(conversation.messages), None)
    return first.content if first is not None and first.role == "system" else None


def shared(found: Collection[str | None]) -> str | None:
    """The prompt of all, where they have one and the same; else None."""
    different = set(found)
    return different.pop() if len(different) == 1 else None
