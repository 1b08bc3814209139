"""The same question with different answers."""

from __future__ import annotations

from collections.abc import Iterator

from lorikeet.base.nouns import Origin
from lorikeet.data.checks._contract import Check, Finding, Row, Setting
from lorikeet.data.checks._seen import Seen, named, question_and_answer


class ConflictingAnswers(Check):
    """Training rows ask the same (system prompt and earlier turns too) and answer differently."""

    reason = "The model learns neither answer, but something between them; for variety on purpose that is fine."
    fix = "Keep the better answer: lorikeet data clean with dedupe, or by hand."

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self._seen = Seen()

    def row(self, row: Row) -> Iterator[Finding]:
        hashes = question_and_answer(row.messages, row.tools)
        if hashes is not None and row.side == "train":
            self._seen.add(*hashes, row.origin)
        return iter(())

    def end(self) -> Iterator[Finding]:
        for group in self._seen.groups():
            first: dict[int, Origin] = {}
            for answer, _, origin in group:
                first.setdefault(answer, origin)
            if len(first) > 1:
                one, *others = first.values()
                rows = ", ".join(named(origin, others[0]) for origin in (one, *others)[:8])
                more = f" and {len(first) - 8} more" if len(first) > 8 else ""
                yield Finding(others[0], f"asked {len(group)} times, answered in {len(first)} ways: {rows}{more}")
