"""A part of the rows, drawn by a number that follows from the seed and the row's place: the same rows every time.

An exact number needs all rows to be seen before the first goes on. They wait in a temporary file, so that memory holds
16 bytes a row and not the rows.
"""

from __future__ import annotations

import hashlib
import heapq
import tempfile
from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import Record, unpacked
from lorikeet.data.steps._values import from_line, to_line


class Sample(Step):
    """So many rows, or such a share of them, in their order."""

    kind: Literal["sample"] = "sample"
    in_order: ClassVar[bool] = True
    rows: int | None = Field(None, ge=1, description="Exactly so many rows, where there are as many.")
    share: float | None = Field(None, gt=0, lt=1, description="About this share of the rows.")
    seed: int = Field(0, ge=0, description="Another seed draws other rows.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Sample:
        if (self.rows is None) == (self.share is None):
            raise ValueError("needs rows or share, one of them")
        return self

    def clean(self, records: Iterable[Record], log: Log) -> Iterator[Record]:
        if self.share is not None:
            for record in records:
                log.rows_in += 1
                if self._number(record) < self.share * 2**64:
                    log.rows_out += 1
                    yield record
                else:
                    log.drop(record, "not drawn", copy=False)
            return
        assert self.rows is not None
        best: list[tuple[int, int]] = []  # (-number, place) of the rows with the smallest numbers
        with tempfile.TemporaryFile() as waiting:
            for place, record in enumerate(records):
                log.rows_in += 1
                waiting.write(to_line(record.packed()))
                entry = (-self._number(record), -place)
                if len(best) < self.rows:
                    heapq.heappush(best, entry)
                else:
                    heapq.heappushpop(best, entry)
            drawn = {-place for _, place in best}
            waiting.seek(0)
            for place, line in enumerate(waiting):
                record = unpacked(from_line(line))
                if place in drawn:
                    log.rows_out += 1
                    yield record
                else:
                    log.drop(record, "not drawn", copy=False)

    def _number(self, record: Record) -> int:
        """[0, 2^64), as good as random."""
        named = f"{self.seed} {record.origin.file} {record.origin.row} {record.part}"
        return int.from_bytes(hashlib.blake2b(named.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
