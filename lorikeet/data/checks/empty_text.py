"""Replies and questions without text."""

from __future__ import annotations

from collections.abc import Iterator

from lorikeet.data.checks._contract import Check, Finding, Row
from lorikeet.data.checks.unusable import level_of, reason_of, says_empty

_NOTHING = frozenset(("nan", "NaN", "null", "NULL", "undefined", "<NA>"))  # what exports write for a missing value


_SPOKEN = {"assistant": "reply", "user": "question"}


class EmptyText(Check):
    """A reply, a question or its input is empty, white space, or the word an export writes for nothing."""

    level = "error"
    reason = "An empty reply teaches the model to end at once; an empty question teaches answers to nothing."
    fix = "Leave such rows out (data.bad_rows=skip, or lorikeet data clean), or fill them in."

    def row(self, row: Row) -> Iterator[Finding]:
        if row.error is not None and says_empty(row.error):
            yield row.found(reason_of(row.error, row), level=level_of(self.setting, row))
        for index, message in enumerate(row.messages):
            what, said = _SPOKEN.get(message.role), message.content.strip()
            if what is not None and said in _NOTHING:
                yield row.found(f"the {what} is '{said}'", index, "warning")
            elif message.context is not None and message.context.strip() in _NOTHING:
                yield row.found(f"the input is '{message.context.strip()}'", index, "warning")
            elif message.role == "user" and not said:  # which the format `messages` lets through
                yield row.found("the question is empty", index, "warning")
