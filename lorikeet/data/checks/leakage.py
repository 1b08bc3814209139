"""What validates was trained on."""

from __future__ import annotations

from collections.abc import Iterator

from lorikeet.data.checks._contract import Check, Finding, Row, Setting
from lorikeet.data.checks._seen import Seen, hashed, named, question_and_answer


class Leakage(Check):
    """A row of the validation sources stands in the training sources too, or its question does."""

    level = "error"
    reason = "The held-out loss then measures memory, and the best checkpoint is the one that memorised most."
    fix = "Take the row out of one side; or data.validation=0.1, which keeps rows that are the same on one side."

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self._seen = Seen()

    def row(self, row: Row) -> Iterator[Finding]:
        hashes = question_and_answer(row.messages)
        if hashes is None and row.messages:  # a document, or a reply to nothing
            hashes = hashed(message.content for message in row.messages), 0
        if hashes is not None:
            self._seen.add(*hashes, row.origin, row.side)
        return iter(())

    def end(self) -> Iterator[Finding]:
        for group in self._seen.groups():
            trained = {answer: origin for answer, side, origin in reversed(group) if side == "train"}
            first = next(iter(reversed(trained.values())), None)
            for answer, side, origin in group:
                if side == "validation" and answer in trained:
                    yield Finding(origin, f"is trained on: {named(trained[answer], origin)}")
                elif side == "validation" and first is not None:
                    what = f"its question is trained on with another answer: {named(first, origin)}"
                    yield Finding(origin, what, level="warning")
