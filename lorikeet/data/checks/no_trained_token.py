"""Rows of which no token is learned."""

from __future__ import annotations

from collections.abc import Iterator

from lorikeet.data.checks._contract import Check, Finding, Row


class NoTrainedToken(Check):
    """Nothing in the row has a loss weight, before or after it was cut to max_length."""

    level = "error"
    reason = "The row costs time and teaches nothing; a whole file of such rows gives a loss of 0 or NaN."
    fix = "Look at data.loss, at `train` and `weight` in the rows, and at data.max_length and data.truncation."
    needs_model = True

    def row(self, row: Row) -> Iterator[Finding]:
        pieces = row.walked.pieces
        if pieces and row.error is not None:
            yield row.found(f"no message is learned (roles {' '.join(message.role for message in row.messages)})")
            return
        for piece in pieces:
            if piece.dropped is not None and "no trained token" in piece.dropped:
                yield row.found(f"{piece.dropped} ({piece.whole} tokens before it was cut)")
            elif piece.dropped is None and not piece.weights.any():
                yield row.found("an example without any loss weight")
