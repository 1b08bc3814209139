"""What every cleaning step does: an iterator of records to an iterator of records, with every change on the record.

A step never lets a row vanish. It yields a record (changed or not), or tells its log: `drop` (the row is rejected),
`merge` (the row is another one's copy), `cut` (turns of a row that goes on without them). One row to several is
`parts`. So for every step: rows in + parts = rows out + dropped + merged; it is checked after each piece of work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from lorikeet.base.errors import DataError
from lorikeet.base.options import Options
from lorikeet.data.steps._record import Record, Turn

_COUNTS = ("rows_in", "rows_out", "changed", "parts")
_REASONS = ("changes", "dropped", "merged", "cuts", "seen")


@dataclass
class Log:
    """What one step did. `entries` are rows for rejected.jsonl, taken away by the runner as they come."""

    step: str
    rows_in: int = 0
    rows_out: int = 0
    changed: int = 0  # rows with at least one change
    parts: int = 0  # rows that came of cutting one into several, beyond the first
    changes: dict[str, int] = field(default_factory=dict)  # reason -> rows
    dropped: dict[str, int] = field(default_factory=dict)
    merged: dict[str, int] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)  # reason -> turns left out of rows that stayed
    seen: dict[str, int] = field(default_factory=dict)  # what a step found without changing anything: languages, files
    entries: list[dict[str, Any]] = field(default_factory=list)

    def change(self, record: Record, reason: str) -> None:
        """Count the record as changed, once for each reason."""
        _one_more(self.changes, reason)
        if record.changed_by != self.step:
            record.changed_by = self.step
            self.changed += 1

    def drop(self, record: Record, reason: str, detail: str | None = None, *, copy: bool = True) -> None:
        """Reject the record. `copy=False` leaves its text out of rejected.jsonl: the file and row name it."""
        _one_more(self.dropped, reason)
        self._entry(record, reason, detail, {"content": record.as_row()} if copy else {})

    def merge(self, record: Record, reason: str, into: str) -> None:
        """The record is a copy of the row `into` ("file:line"), which stays."""
        _one_more(self.merged, reason)
        self._entry(record, reason, None, {"same_as": into})

    def cut(self, record: Record, turns: Iterable[Turn | str], reason: str) -> None:
        """Turns (or pieces of text) leave a record that goes on without them."""
        for turn in turns:
            _one_more(self.cuts, reason)
            self._entry(record, reason, None, {"cut": turn if isinstance(turn, str) else [turn.speaker, turn.text]})
        self.change(record, reason)

    def see(self, what: str) -> None:
        """Count something found."""
        _one_more(self.seen, what)

    def _entry(self, record: Record, reason: str, detail: str | None, more: dict[str, Any]) -> None:
        origin = record.origin
        entry = {"file": origin.file, "row": origin.row, "line": origin.line, "part": record.part or None}
        entry |= {"step": self.step, "reason": reason, "detail": detail}
        self.entries.append({name: value for name, value in entry.items() if value is not None} | more)

    def add(self, other: dict[str, Any]) -> None:
        """Add what another process counted."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + other[name])
        for name in _REASONS:
            mine = getattr(self, name)
            for reason, count in other[name].items():
                mine[reason] = mine.get(reason, 0) + count

    def take(self, record: Record, chosen: Log, rejected: Log) -> None:
        """What was done to the two sides of a pair that stays; what both did to the prompt counts once."""
        for what, count in chosen.seen.items():
            self.seen[what] = self.seen.get(what, 0) + count
        of_chosen = [entry.get("cut") for entry in chosen.entries]
        for entry in (*chosen.entries, *(one for one in rejected.entries if one.get("cut") not in of_chosen)):
            _one_more(self.cuts, entry["reason"])
            self.entries.append(entry)
        record.changed_by = ""
        for reason in {**chosen.changes, **rejected.changes}:
            self.change(record, reason)

    def as_dict(self) -> dict[str, Any]:
        """Its counts, for the report and between processes."""
        return {name: getattr(self, name) for name in ("step", *_COUNTS, *_REASONS)}

    def check(self) -> None:
        """Every row is accounted for."""
        left = self.rows_out + sum(self.dropped.values()) + sum(self.merged.values())
        assert self.rows_in + self.parts == left, f"step {self.step} lost rows: {self.as_dict()}"


class Step(Options):
    """Base of the step kinds; fields are the step's options."""

    in_order: ClassVar[bool] = False  # it remembers rows, so one process sees all of them in their order

    def start(self) -> None:
        """Raise now what would fail on the first row: a package or a model that is not there."""

    def files(self) -> list[Path]:
        """Files that decide what the step does, besides its options: changed ones make another output."""
        return []

    def fingerprint(self) -> str:
        """What else decides, as a hash, once `start` has found all of it: how a model counts, for example."""
        return ""

    def clean(self, records: Iterable[Record], log: Log) -> Iterator[Record]:
        """The records that go on. A step that looks at rows one by one defines `each` instead."""
        for record in records:
            log.rows_in += 1
            try:
                made = self.each(record, log) if not record.rejected else self._both_sides(record, log)
            except DataError as error:  # a row the step cannot work on
                log.drop(record, "cannot be worked on", error.what)
                continue
            for one in made:
                log.rows_out += 1
                yield one

    def _both_sides(self, record: Record, log: Log) -> Iterable[Record]:
        """The step on a preference pair: on the prompt with each of its replies. The pair stays where both stay."""
        other = record.other_side()
        chosen, rejected = replace(record, rejected=[], chosen=0), other
        sizes, prompt = [len(chosen.turns), len(rejected.turns)], len(record.turns) - record.chosen
        logs = Log(log.step), Log(log.step)
        kept = [list(self.each(side, own)) for side, own in zip((chosen, rejected), logs)]
        for side, own, where in zip(kept, logs, ("", "with the rejected reply")):
            if not side:
                gone = own.entries[-1]
                told = [part for part in (where, gone.get("detail")) if part]
                log.drop(record, gone["reason"], ": ".join(told) or None)
                return []
        if len(kept[0]) > 1 or len(kept[1]) > 1:
            log.drop(record, "a pair cannot be cut into parts", f"{len(kept[0])} and {len(kept[1])} parts")
            return []
        made, worse = kept[0][0], kept[1][0].turns
        if made.turns == worse:
            log.drop(record, "both replies are the same")
            return []
        if [len(made.turns), len(worse)] == sizes:  # the prompt is as the chosen side has it
            made.chosen, made.rejected = sizes[0] - prompt, worse[prompt:]
        elif made.turns[: len(worse)] == worse or worse[: len(made.turns)] == made.turns:
            log.drop(record, "a reply of the pair is gone")  # and one conversation is the other's beginning
            return []
        else:
            made.pair_with(worse)
        log.take(made, *logs)
        return [made]

    def each(self, record: Record, log: Log) -> Iterable[Record]:
        """The record, changed or not; nothing, with the reason in the log; or its parts."""
        raise NotImplementedError


def split(record: Record, pieces: list[list[Turn]], log: Log) -> list[Record]:
    """The record as several, each with its turns; all but the first count as parts."""
    log.parts += len(pieces) - 1
    return [record.part_of(turns, number) for number, turns in enumerate(pieces)]


def _one_more(counts: dict[str, int], reason: str) -> None:
    counts[reason] = counts.get(reason, 0) + 1
