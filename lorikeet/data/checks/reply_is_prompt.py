"""Replies that only repeat the question."""

from __future__ import annotations

from collections.abc import Iterator

from lorikeet.data.checks._contract import Check, Finding, Row, excerpt


class ReplyIsPrompt(Check):
    """A reply equals the message before it."""

    reason = "The model learns to echo."
    fix = "Leave such rows out; mostly the answer's column was filled with the question's."

    def row(self, row: Row) -> Iterator[Finding]:
        for index, reply in row.replies():
            before = row.messages[index - 1] if index else None
            if before is None or before.role != "user" or not reply.content.strip():
                continue
            if reply.content.split() == before.content.split():
                yield row.found(f"the reply is the question: {excerpt(reply.content)}", index)
