"""The same row again."""

from __future__ import annotations

from collections.abc import Iterator

from lorikeet.data.checks._contract import Check, Finding, Row, Setting
from lorikeet.data.checks._seen import Seen, hashed, named


class RepeatedRows(Check):
    """Two training rows say the same, but for upper and lower case and spaces."""

    reason = "What comes often is learned by heart, and an epoch is longer than it seems."
    fix = "lorikeet data clean with dedupe; a source's weight says that it should come more often."

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self._seen = Seen()

    def row(self, row: Row) -> Iterator[Finding]:
        if row.messages and row.side == "train":
            texts = (text for one in row.messages for text in (one.role, one.content, str(one.tool_calls)))
            self._seen.add(hashed((*texts, *map(str, row.tools))), 0, row.origin)
        return iter(())

    def end(self) -> Iterator[Finding]:
        for group in self._seen.groups():
            for _, _, origin in group[1:]:
                yield Finding(origin, f"says what {named(group[0][2], origin)} says")
