"""What validates was trained on: rows of validation sources, or of the share of the rows that is held out."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from lorikeet.data.checks._contract import Check, Finding, Row, Setting
from lorikeet.data.checks._seen import Seen, hashed, named, question_and_answer
from lorikeet.data.many import conversation_hash
from lorikeet.data.pipeline import held_out
from lorikeet.data.sources import validation_of


class Leakage(Check):
    """A row that validates stands among those that train, too, or its question does; also where rows are held out."""

    level = "error"
    reason = "The held-out loss then measures memory, and the best checkpoint is the one that memorised most."
    fix = "Take the row out of one side, or lorikeet data clean with dedupe; a split keeps identical rows on one side."

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self._seen = Seen()
        wanted = validation_of(setting.options)
        # which rows are held out is known by their tokens, so only with a model
        self._wanted = wanted if isinstance(wanted, (int, float)) and setting.encoder is not None else None
        self._hashes = array("Q")

    def row(self, row: Row) -> Iterator[Finding]:
        hashes = question_and_answer(row.messages, row.tools)
        if hashes is None and row.messages:  # a document, or a reply to nothing
            hashes = hashed(message.content for message in row.messages), 0
        if hashes is None or (self._wanted is not None and not row.kept):
            return iter(())
        self._seen.add(*hashes, row.origin, row.side)
        if self._wanted is not None:
            self._hashes.append(conversation_hash(piece.tokens.tobytes() for piece in row.walked.pieces))
        return iter(())

    def end(self) -> Iterator[Finding]:
        if self._wanted is not None and self._hashes:
            hashes = np.frombuffer(self._hashes, np.uint64)
            self._seen.hold_out(held_out(hashes, self._wanted, self.setting.seed))
        for group in self._seen.groups():
            trained = {answer: origin for answer, side, origin in reversed(group) if side == "train"}
            first = next(iter(reversed(trained.values())), None)
            for answer, side, origin in group:
                if side == "validation" and answer in trained:
                    yield Finding(origin, f"is trained on: {named(trained[answer], origin)}")
                elif side == "validation" and first is not None:
                    what = f"its question is trained on with another answer: {named(first, origin)}"
                    yield Finding(origin, what, level="warning")
