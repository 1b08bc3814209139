"""Rows that a format or a template refuses."""

from __future__ import annotations

from collections.abc import Iterator

from lorikeet.base.errors import LorikeetError
from lorikeet.data.checks._contract import Check, Finding, Level, Row, Setting


class Unusable(Check):
    """The row cannot be read, or the template cannot say it."""

    level = "error"
    reason = "Training stops at such a row, or leaves it out (data.bad_rows=skip)."
    fix = "Mend the row, choose another data.format or data.template, or data.bad_rows=skip."

    def row(self, row: Row) -> Iterator[Finding]:
        if row.error is not None and not row.walked.pieces and not says_empty(row.error):
            yield row.found(reason_of(row.error, row), level=level_of(self.setting, row))


def says_empty(error: LorikeetError) -> bool:
    """Whether a row is refused because a text in it is empty."""
    return error.what.endswith(" is empty")


def level_of(setting: Setting, row: Row) -> Level:
    """A row that is left out on purpose is a warning; a file that cannot be read on is none of those."""
    return "warning" if setting.options.bad_rows == "skip" and row.walked.raw is not None else "error"


def reason_of(error: LorikeetError, row: Row) -> str:
    """What the error says, without the place, which stands beside it; with what was given."""
    what = error.what.removeprefix(f"{row.origin}: ").removeprefix(f"{row.origin.file}: ")
    given = " ".join(str(error.given).split())[:80] if error.given is not None else ""
    return f"{what} ({given})" if given and given not in what else what
