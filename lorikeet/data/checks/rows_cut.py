"""Rows that are longer than max_length."""

from __future__ import annotations

from collections.abc import Iterator

from lorikeet.data.checks._contract import Check, Finding, Row


class RowsCut(Check):
    """A part of the row, or all of it, is left out because it is longer than data.max_length."""

    reason = "What is cut is not learned, and a question without its start may not be what the answer answers."
    fix = "A larger data.max_length; lorikeet data clean with split_turns; or a data.truncation you mean."
    needs_model = True

    def row(self, row: Row) -> Iterator[Finding]:
        most = self.setting.options.max_length
        for piece in row.walked.pieces if row.error is None else ():
            if piece.cut or piece.dropped == "longer than max_length":
                became = f"cut to {len(piece.tokens)}" if piece.dropped is None else "left out"
                yield row.found(f"{piece.whole} tokens, {became} (data.max_length {most}, {self._how})")

    @property
    def _how(self) -> str:
        return f"data.truncation {self.setting.options.truncation}"
