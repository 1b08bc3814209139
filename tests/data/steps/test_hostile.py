"""Texts made to take for ever: what steps do to them grows with their length, not with its square."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from lorikeet.base.nouns import Origin
from lorikeet.data.formats.dialogue import Dialogue
from lorikeet.data.steps._fences import repaired
from lorikeet.data.steps._html import to_markdown

MANY = 60_000  # squared, it is minutes


def said(text: str) -> str:
    return Dialogue().read({"turns": [text, "b"]}, Origin("a", 0)).messages[0].content


TEXTS: dict[str, tuple[Callable[[str], str], str]] = {
    "spaces in a copied block": (repaired, "```\npythonCopy code\nx" + " " * MANY + "y"),
    "line ends in a copied block": (repaired, "```Copy code" + "\n" * MANY),
    "spaces in a dialogue": (said, "a" + " " * MANY + "b"),
    "tabs in code": (to_markdown, "<p>a<br><code>a" + "\t" * MANY + "b</code></p>"),
    "spaces of many elements": (to_markdown, "<p>a" + "<span> </span>" * MANY + "<br>b</p>"),
    "tags that nobody knows": (to_markdown, "<p>" + "<x></x>" * MANY + "</p>"),
    "tags that never end": (to_markdown, "".join(f"<p><x{number}></p>" for number in range(MANY // 4))),
}


@pytest.mark.parametrize("case", TEXTS)
def test_time_grows_with_the_text_and_not_with_its_square(case: str) -> None:
    change, text = TEXTS[case]
    start = time.process_time()
    change(text)
    assert time.process_time() - start < 2


def test_a_copied_block_is_repaired_as_before() -> None:
    assert repaired("```\npythonCopy code\nx = 1  \n \n```\nb") == "```python\nx = 1\n```\nb"
    assert repaired("```\nCopy code \n```") == ""
    assert said("a \t , b !") == "a, b!"
