"""Learned replies whose end is not learned."""

from __future__ import annotations

from collections.abc import Iterator

from lorikeet.data.checks._contract import Check, Finding, Row


class UntrainedEnd(Check):
    """A reply is learned, and the token or text that ends it is not among its learned tokens."""

    level = "error"
    reason = "A model that never sees its reply end goes on until it is stopped."
    fix = "A larger data.max_length, or data.truncation=drop; or a template that closes each reply with EOS."
    needs_model = True

    def row(self, row: Row) -> Iterator[Finding]:
        if row.error is not None and "no end-of-turn token" in row.error.what:
            yield row.found("the template closes its replies with no end-of-turn token")
        for piece, spelled in zip(row.kept, row.spelled):
            learned: dict[int, bool] = {}
            for one, weight in zip(spelled, piece.weights.tolist()):
                if weight > 0 and one.message is not None and row.messages[one.message].role == "assistant":
                    learned[one.message] = learned.get(one.message, False) or self._ends(one.token, one.part)
            for message, ended in learned.items():
                if not ended:
                    cut = f", cut at {len(piece.tokens)} of {piece.whole} tokens" if piece.cut else ""
                    yield row.found(f"the reply's end is not learned{cut}", message)

    def _ends(self, token: int, part: str) -> bool:
        encoder = self.setting.encoder
        assert encoder is not None
        # an end of plain text may share its token with the reply's last letters: its part says so then
        return part == "end" and (token in encoder.template.stop_ids or bool(encoder.template.stop_strings))
