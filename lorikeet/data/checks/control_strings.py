"""The names of control tokens in what people wrote."""

from __future__ import annotations

from collections.abc import Iterator

from lorikeet.data.checks._contract import Check, Finding, Row, Setting, excerpt
from lorikeet.data.checks._markers import THOUGHTS, control_strings, pattern_of


class ControlStrings(Check):
    """A message's text contains the name of a control token."""

    reason = (
        "Here it stays text, not the token; other tools make the token of it. In a reply it teaches the model to spell "
        "the name. Mostly the rows were rendered once before."
    )
    fix = "Take the names out of the rows, and split rows that hold a whole rendered conversation into turns."

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self._pattern = pattern_of(control_strings(setting.encoder))

    def row(self, row: Row) -> Iterator[Finding]:
        for index, message in enumerate(row.messages):
            for match in self._pattern.finditer(message.content) if self._pattern else ():
                if message.role == "assistant" and match[0] in THOUGHTS:
                    continue
                yield row.found(f"'{match[0]}' in: {excerpt(message.content, match.start())}", index)
                break
