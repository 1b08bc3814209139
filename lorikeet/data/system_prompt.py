"""The system prompt that a recipe's conversations share: who was trained behind one has to be asked behind it."""

from __future__ import annotations

from itertools import islice

from lorikeet.base.log import no_lines
from lorikeet.data.pipeline import DataOptions
from lorikeet.data.rows import conversations
from lorikeet.data.sources import open_all

LOOKED_AT = 32  # conversations at the start of each source: enough to see whether they differ


def shared_system(options: DataOptions) -> str | None:
    """What the first conversations of all training sources begin with, where that is one and the same system prompt;
    None where they begin otherwise. Raises as `prepare` does for sources that are gone."""
    found: set[str | None] = set()
    with no_lines():  # all of it was said when they were prepared
        for source in open_all(options.train):
            read = conversations(source.files, source.options.format or options.format, bad_rows="skip")
            for one in islice(read, LOOKED_AT):
                first = next(iter(one.messages), None)
                found.add(first.content if first is not None and first.role == "system" else None)
    return found.pop() if len(found) == 1 else None
