"""Thoughts between <think> and </think>, which some templates show only in the last reply."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def split_thought(text: str) -> tuple[str, str]:
    """(thought, answer) of a reply, without the line ends between them; no thought is ''."""
    if CLOSE not in text:
        return "", text
    thought = text.split(CLOSE)[0].split(OPEN)[-1]
    return thought.strip("\n"), text.split(CLOSE)[-1].lstrip("\n")
