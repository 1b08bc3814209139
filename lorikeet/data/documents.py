"""Documents out of the lines of a plain text file: each line, each paragraph, or the whole file.

The names are those of the `text` builder of Hugging Face datasets (`sample_by`). A document's own line ends are part
of it (as \\n, whatever the file has); those around a line or a paragraph are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from lorikeet.base.nouns import Origin

SampleBy = Literal["line", "paragraph", "document"]


def documents(lines: Iterable[tuple[int, str]], name: str, sample_by: SampleBy) -> Iterator[tuple[dict, Origin]]:
    """({"text": ...}, origin) for each document; `lines` are (number from 1, line with its end). Documents of white
    space alone are left out. A paragraph ends at a blank line."""
    row, start, waiting = 0, 1, list[str]()
    for number, line in lines:
        blank = not line.strip()
        if sample_by == "line" or (sample_by == "paragraph" and blank):
            waiting += [] if blank else [line]
            if waiting:
                yield {"text": _joined(waiting, sample_by)}, Origin(name, row, number if sample_by == "line" else start)
                row, waiting = row + 1, []
            start = number + 1
        else:
            waiting.append(line)
    if any(line.strip() for line in waiting):
        yield {"text": _joined(waiting, sample_by)}, Origin(name, row, start)


def _joined(lines: list[str], sample_by: SampleBy) -> str:
    text = "".join(line[:-2] + "\n" if line.endswith("\r\n") else line for line in lines)
    return text if sample_by == "document" else text.rstrip("\n")
