"""Identity rows whose name and author nobody filled in."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lorikeet.data.checks._contract import Check, Finding, Row, excerpt

# those two words alone: other words in braces are more often templates of programs, which people ask about
_HOLE = re.compile(r"\{\{\s*(?:[Nn]ame|NAME|[Aa]uthor|AUTHOR)\s*\}\}|<(?:NAME|AUTHOR)>")


class Placeholders(Check):
    """A message's text holds a placeholder for the model's name or its author, such as `{{name}}`."""

    reason = "The model introduces itself with the placeholder."
    fix = "lorikeet data clean with fill_in, or leave the rows out."

    def row(self, row: Row) -> Iterator[Finding]:
        for index, message in enumerate(row.messages):
            if match := _HOLE.search(message.content):
                yield row.found(f"'{match[0]}' in: {excerpt(message.content, match.start())}", index)
