"""Turns in exchanges: a question with everything up to the next one."""

from __future__ import annotations

from lorikeet.data.steps._record import Turn


def exchanges(turns: list[Turn]) -> tuple[list[Turn], list[list[Turn]]]:
    """(system prompts at the start, exchanges). An exchange begins with a user's turn that follows another speaker's;
    turns before the first one are an exchange of their own."""
    first = next((number for number, turn in enumerate(turns) if turn.role != "system"), len(turns))
    found: list[list[Turn]] = []
    previous = None
    for turn in turns[first:]:
        if not found or (turn.role == "user" and previous != "user"):
            found.append([])
        found[-1].append(turn)
        previous = turn.role
    return turns[:first], found
