"""A second file with the rows of metrics.jsonl: for a collector that follows a file, or a folder others can see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from lorikeet.base.files import need_space
from lorikeet.train.metrics import Metrics
from lorikeet.train.trackers._contract import About, Row, Session, Tracker


class Jsonl(Tracker):
    """The rows of metrics.jsonl in a file of your choice too, one JSON object per line."""

    kind: Literal["jsonl"] = "jsonl"
    path: Path = Field(
        description="The second file, replaced when a run begins; metrics.jsonl in the run's folder is always written.",
        examples=["/mnt/shared/first.jsonl"],
    )

    @field_validator("path")
    @classmethod
    def _a_file(cls, value: Path) -> Path:
        if value.suffix not in (".jsonl", ".ndjson", ".json"):
            raise ValueError("needs the name of a .jsonl file")
        return value

    def check(self) -> None:
        need_space(self.path.parent, 1 << 20, "the tracker's file")

    def start(self, about: About, past: Sequence[Row]) -> Session:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return _Session(self.path, past)


class _Session:
    def __init__(self, path: Path, past: Sequence[Row]):
        self.file = Metrics(path)
        path.unlink(missing_ok=True)
        path.touch()
        for row in past:
            self.row(row)

    def row(self, row: Row) -> None:
        self.file.append(dict(row))

    def close(self, *, finished: bool) -> None:
        """The file is closed after each row."""
