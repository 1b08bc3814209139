"""Rows that are there twice: by id, by what is said, by how it opens, or nearly (MinHash and LSH, from rensa).

The first stays. Each copy is merged away into it, and rejected.jsonl names the row that stayed. Memory: about 150 bytes
a row for each exact way, 700 for the near one; never the rows themselves.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from lorikeet.base.extras import require
from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import Record

_PERMUTATIONS = 128  # the estimate of likeness is right to about 0.04
_SEED = 1
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")
_SURE = 0.99  # chance that a pair just at the threshold is compared at all
_REASONS = {"id": "same id", "content": "same content", "opening": "same opening"}


class Dedupe(Step):
    """One row of those that are the same, or nearly."""

    kind: Literal["dedupe"] = "dedupe"
    in_order: ClassVar[bool] = True
    by: list[Literal["id", "content", "opening"]] = Field(
        ["content"],
        description="What must be the same: id; content (all turns); opening (the first question and its answer, "
        "FastChat's rule). One that is the same is enough.",
    )
    near: float | None = Field(
        None, ge=0.3, lt=1, description="Also rows at least so alike: the share of three-word phrases in common."
    )

    @model_validator(mode="after")
    def _has_a_rule(self) -> Dedupe:
        if not self.by and self.near is None:
            raise ValueError("needs by or near")
        return self

    def start(self) -> None:
        if self.near is not None:
            require("rensa", extra="data", needed_by="the step dedupe with near")

    def clean(self, records: Iterable[Record], log: Log) -> Iterator[Record]:
        seen: dict[bytes, str] = {}
        alike = _Alike(self.near) if self.near is not None else None
        for record in records:
            log.rows_in += 1
            place = str(record.origin) + (f" part {record.part}" if record.part else "")
            keys = [(way, key) for way in self.by if (key := _key(record, way)) is not None]
            same = next(((_REASONS[way], seen[key]) for way, key in keys if key in seen), None)
            if same is None and alike is not None and (other := alike.find_or_add(record, place)) is not None:
                same = ("nearly the same", other)
            if same is not None:
                log.merge(record, *same)
                continue
            for _, key in keys:
                seen[key] = place
            log.rows_out += 1
            yield record


def _key(record: Record, way: str) -> bytes | None:
    """16 bytes that rows which are the same in this way share; None for a row without an id."""
    said: Any
    if way == "id":
        said = record.rest.get("id")
        if said is None or said == "":
            return None
        said = [f"{said}", record.part]
    elif way == "content":
        turns = (*record.turns, *record.rejected)
        said = [[turn.role, turn.text, turn.rest.get("tool_calls")] for turn in turns]
    else:
        said = [turn.text for turn in record.turns if turn.role != "system"][:2]
    words = json.dumps([way, said], default=str)
    return hashlib.blake2b(words.encode(), digest_size=16).digest()


class _Alike:
    """An index of the rows so far, asked for one that is at least as alike as the threshold."""

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.rensa: Any = require("rensa", extra="data", needed_by="the step dedupe with near")
        self.index = self.rensa.RMinHashLSH(threshold, _PERMUTATIONS, _bands(threshold))
        self.kept: list[tuple[Any, str]] = []

    def find_or_add(self, record: Record, place: str) -> str | None:
        """The place of a row like this one; or None, and from now on this one is there to be found."""
        made = self.rensa.RMinHash(_PERMUTATIONS, _SEED)
        made.update(_phrases(" ".join([*record.texts(), *(turn.text for turn in record.rejected)])))
        for number in self.index.query(made):
            other, where = self.kept[number]
            if made.jaccard(other) >= self.threshold:
                return where
        self.index.insert(len(self.kept), made)
        self.kept.append((made, place))
        return None


def _phrases(text: str) -> list[str]:
    words = _WORD.findall(text.lower()) or text.split()  # of signs alone: two texts of other signs are not alike
    return [" ".join(three) for three in zip(words, words[1:], words[2:])] or [" ".join(words)]


def _bands(threshold: float) -> int:
    """The fewest bands of the signature with which a pair at the threshold is compared almost surely."""
    for rows in (16, 8, 4, 2):
        bands = _PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= _SURE:
            return bands
    return _PERMUTATIONS
