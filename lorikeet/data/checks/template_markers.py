"""The words with which a template begins turns, in what people wrote."""

from __future__ import annotations

from collections.abc import Iterator

from lorikeet.data.checks._contract import Check, Finding, Row, Setting, excerpt
from lorikeet.data.checks._markers import marker_strings, pattern_of


class TemplateMarkers(Check):
    """A message's text contains a marker of turns, such as `### Response:` or `[INST]`."""

    reason = "The model learns to write the next turn itself, or reads one turn as two."
    fix = "Split the text into turns, or take the markers out."

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self._pattern = pattern_of(marker_strings(setting.encoder))

    def row(self, row: Row) -> Iterator[Finding]:
        for index, message in enumerate(row.messages):
            match = self._pattern.search(message.content) if self._pattern else None
            if match:
                yield row.found(f"'{match[0]}' in: {excerpt(message.content, match.start())}", index)
