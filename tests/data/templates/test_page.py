"""docs/templates.md shows what the kinds write, and names every kind."""

from __future__ import annotations

import re

from data.templates.page import END, PAGE, SHOWN, START, examples
from lorikeet.base.kinds import kinds


def test_the_examples_on_the_page_are_what_the_kinds_write() -> None:
    shown = PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0]
    assert shown.strip() == examples().strip(), "PYTHONPATH=tests python -m data.templates.page writes them again"


def test_the_page_s_table_has_every_kind() -> None:
    named = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.M)
    assert sorted(named) == kinds("lorikeet.data.templates")
    assert sorted(SHOWN) == [kind for kind in kinds("lorikeet.data.templates") if kind != "jinja"]
