"""docs/formats.md: each row on the page is read by the format of its heading, found by looking."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lorikeet.base.kinds import kinds
from lorikeet.base.nouns import Origin
from lorikeet.data.formats.auto import PACKAGE, Auto

PAGE = (Path(__file__).parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")
SECTIONS = {part.split("\n", 1)[0]: part for part in PAGE.split("\n## ")[1:]}
ROWS = [
    (kind, row) for kind, part in SECTIONS.items() for row in re.findall(r"```json\n(.*?)```", part, flags=re.DOTALL)
]


@pytest.mark.parametrize("kind, row", ROWS, ids=[f"{kind} {number}" for number, (kind, _) in enumerate(ROWS)])
def test_rows_on_the_page_are_what_they_are_said_to_be(kind: str, row: str, capsys: pytest.CaptureFixture) -> None:
    content = json.loads(row)
    settled = Auto().settle([content], "page")
    assert settled.model_dump()["kind"] == kind
    conversation = settled.read(content, Origin("page", 0))
    assert conversation.messages[-1].role in ("assistant", "text")
    assert "not read" not in capsys.readouterr().err


def test_every_format_is_on_the_page() -> None:
    assert [*sorted(SECTIONS)] == [kind for kind in kinds(PACKAGE) if kind != "auto"]
