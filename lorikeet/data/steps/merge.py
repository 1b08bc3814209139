"""Several files as one set: counts what each gave, and keeps ids of different files apart.

Files that were numbered on their own share ids (`identity_0` in two identity sets). A later `dedupe` by id would take
the second file for a copy of the first, and all of it would be gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import Record


class Merge(Step):
    """The files one after another, as one set; an id that two files use gets the second file's name behind it."""

    kind: Literal["merge"] = "merge"
    in_order: ClassVar[bool] = True
    ids: Literal["distinct", "keep"] = Field(
        "distinct", description="Ids that a file before used: made distinct, or kept as they are."
    )

    def clean(self, records: Iterable[Record], log: Log) -> Iterator[Record]:
        taken: dict[str, str] = {}  # id -> the file that used it first
        for record in records:
            log.rows_in += 1
            file = record.origin.file
            log.see(file)
            name = record.rest.get("id")
            if self.ids == "distinct" and isinstance(name, (str, int)) and taken.setdefault(str(name), file) != file:
                new = f"{name}@{Path(file).stem}"
                while taken.setdefault(new, file) != file:
                    new += "_"
                record.rest["id"] = new
                log.change(record, "id used by another file")
            log.rows_out += 1
            yield record
