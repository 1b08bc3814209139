"""Which rows said the same, in 32 bytes a row: hashes of texts with their rows, sorted at the end."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from lorikeet.base.nouns import Message, Origin


class Seen:
    """Pairs of hashes (of a question, of its answer) and where they stand."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, str], int] = {}
        self._keys, self._values, self._rows = array("Q"), array("Q"), array("q")
        self._file_of, self._lines = array("i"), array("I")  # line 0: its format has no lines
        self._held: np.ndarray | None = None

    def add(self, key: int, value: int, origin: Origin, side: str = "train") -> None:
        """Remember a row."""
        self._keys.append(key)
        self._values.append(value)
        self._rows.append(origin.row)
        self._lines.append(origin.line or 0)
        self._file_of.append(self._files.setdefault((side, origin.file), len(self._files)))

    def hold_out(self, held: np.ndarray) -> None:
        """`held` [rows remembered] bool: these are on the side of validation, the others on that of training."""
        assert len(held) == len(self._keys)
        self._held = held

    def groups(self) -> Iterator[list[tuple[int, str, Origin]]]:
        """The rows of each key that came more than once, in order: (value, side, origin)."""
        keys = np.frombuffer(self._keys, np.uint64) if self._keys else np.zeros(0, np.uint64)
        order = np.argsort(keys, kind="stable")
        sorted_keys = keys[order]
        edges = np.flatnonzero(np.diff(sorted_keys)) + 1
        starts, ends = np.concatenate(([0], edges)), np.concatenate((edges, [len(keys)]))
        files = list(self._files)
        several = np.flatnonzero(ends - starts > 1)
        # in the order of each group's first row, which is how a person goes through a file
        for which in several[np.argsort(order[starts[several]], kind="stable")] if len(keys) else []:
            group = []
            for number in order[starts[which] : ends[which]].tolist():
                side, file = files[self._file_of[number]]
                if self._held is not None:
                    side = "validation" if self._held[number] else "train"
                group.append(
                    (self._values[number], side, Origin(file, self._rows[number], self._lines[number] or None))
                )
            yield group


def hashed(texts: Iterable[str]) -> int:
    """64 bits of the texts; upper or lower case and the amount of space make no difference."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        digest.update(" ".join(text.split()).casefold().encode(errors="surrogatepass"))
        digest.update(b"\0")
    return int.from_bytes(digest.digest(), "little")


def question_and_answer(messages: tuple[Message, ...], tools: Sequence[Any] = ()) -> tuple[int, int] | None:
    """Hashes of everything before the last reply, and of that reply; None where there is no question."""
    last = max((index for index, message in enumerate(messages) if message.role == "assistant"), default=0)
    if last == 0:
        return None
    calls = [str(call) for call in messages[last].tool_calls]
    before = (text for message in messages[:last] for text in (message.role, message.content, str(message.tool_calls)))
    return hashed((*before, *map(str, tools))), hashed((messages[last].content, *calls))


def named(origin: Origin, beside: Origin) -> str:
    """`origin` for people; without the file where it is that of `beside`."""
    return f"row {origin.row}" if origin.file == beside.file else f"{origin.file} row {origin.row}"
