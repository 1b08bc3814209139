"""Two files of rows compared: what a changed chain of steps changed.

Rows are the same row if they come from the same place, where both files were made by `data clean` (it writes down where
each row came from); else if they have the same id, else the same first question. For a row that only one file has, the
other's rejected.jsonl says why.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorikeet.data.files import read_rows
from lorikeet.data.steps._report import companion
from lorikeet.data.steps._values import from_line

_TEXTS = ("value", "content", "text", "instruction", "input", "output", "prompt", "question")
_LISTS = ("conversations", "messages")


@dataclass
class Difference:
    """What differs between A and B. Rows are counted from 0."""

    rows: tuple[int, int] = (0, 0)
    matched_by: str = ""
    same: int = 0
    changed: list[tuple[int, int]] = field(default_factory=list)  # (row of A, row of B)
    only_a: list[int] = field(default_factory=list)
    only_b: list[int] = field(default_factory=list)
    why: dict[str, Counter[str]] = field(default_factory=dict)  # "A" or "B" -> step and reason -> rows

    def lines(self) -> Iterator[str]:
        """The counts."""
        yield f"A {self.rows[0]} rows, B {self.rows[1]} rows, matched by {self.matched_by}"
        yield f"{self.same:>8}  the same"
        yield f"{len(self.changed):>8}  changed"
        for side, other, rows in (("A", "B", self.only_a), ("B", "A", self.only_b)):
            yield f"{len(rows):>8}  only in {side}"
            for reason, count in self.why.get(other, Counter()).most_common(12):
                yield f"{count:>16}  {other} left out: {reason}"


def compare(a: Path, b: Path) -> Difference:
    """The difference of two files of rows. Raises DataError for one that cannot be read."""
    found = Difference()
    origins = [_origins(path) for path in (a, b)]
    by_origin = all(origins)
    found.matched_by = "where they came from" if by_origin else "id, or first question"
    known: dict[bytes, tuple[bytes, int]] = {}
    counts = [0, 0]
    for key, digest, number in _keyed(a, by_origin):
        known[key] = (digest, number)
        counts[0] += 1
    left_b: list[tuple[int, bytes]] = []
    for key, digest, number in _keyed(b, by_origin):
        counts[1] += 1
        before = known.pop(key, None)
        if before is None:
            left_b.append((number, key))
        elif before[0] == digest:
            found.same += 1
        else:
            found.changed.append((before[1], number))
    found.rows = (counts[0], counts[1])
    found.only_a = sorted(number for _, number in known.values())
    found.only_b = [number for number, _ in left_b]
    if by_origin:
        found.why = {"B": _why(b, set(known)), "A": _why(a, {key for _, key in left_b})}
    return found


def examples(a: Path, b: Path, pairs: list[tuple[int, int]]) -> Iterator[tuple[int, int, list[str]]]:
    """(row of A, row of B, lines of a unified diff of their texts) for each pair."""
    rows = [_rows_at(path, {pair[side] for pair in pairs}) for side, path in enumerate((a, b))]
    for left, right in pairs:
        lines = [list(_text_lines(rows[side][number])) for side, number in enumerate((left, right))]
        made = difflib.unified_diff(lines[0], lines[1], f"A row {left}", f"B row {right}", n=1, lineterm="")
        yield left, right, list(made)


def _origins(path: Path) -> bool:
    return companion(path, "origins.jsonl").is_file() and companion(path, "report.json").is_file()


def _keyed(path: Path, by_origin: bool) -> Iterator[tuple[bytes, bytes, int]]:
    """(what the row is known by, a hash of it, its number)."""
    seen: Counter[bytes] = Counter()
    origins = _lines(companion(path, "origins.jsonl")) if by_origin else None
    for number, (row, _) in enumerate(read_rows(path)):
        known = next(origins, None) if origins is not None else _name(row)
        key = _hash(known)
        seen[key] += 1
        if seen[key] > 1:
            key = _hash([known, seen[key]])
        yield key, _hash(row), number


def _name(row: dict[str, Any]) -> Any:
    if row.get("id") is not None:
        return ["id", row["id"]]
    for text in _text_lines(row):
        return ["text", text]
    return row


def _why(path: Path, keys: set[bytes]) -> Counter[str]:
    """How often each step's reason stands for the rows with these keys in the rejected rows beside `path`."""
    rejected = companion(path, "rejected.jsonl")
    reasons: Counter[str] = Counter()
    for entry in _lines(rejected) if keys and rejected.is_file() else ():
        key = _hash([entry["file"], entry["row"], entry.get("part", "")])
        if "cut" not in entry and key in keys:
            reasons[f"{entry['step']}: {entry['reason']}"] += 1
    return reasons


def _lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for line in file:
            yield from_line(line)


def _rows_at(path: Path, numbers: set[int]) -> dict[int, dict[str, Any]]:
    return {number: row for number, (row, _) in enumerate(read_rows(path)) if number in numbers}


def _hash(value: Any) -> bytes:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=16).digest()


def _text_lines(row: dict[str, Any]) -> Iterator[str]:
    """The row's texts line by line, each turn's behind who speaks."""
    for name, value in row.items():
        if name in _LISTS and isinstance(value, list):
            for turn in value:
                who = turn.get("from") or turn.get("role") if isinstance(turn, dict) else ""
                said = turn.get("value", turn.get("content")) if isinstance(turn, dict) else turn
                for line in str(said).split("\n"):
                    yield f"{who}: {line}"
        elif name in _TEXTS and isinstance(value, str):
            for line in value.split("\n"):
                yield f"{name}: {line}"
