"""Texts made to take for ever: what steps do to them grows with their length, not with its square."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from lorikeet.base.nouns import Origin
from lorikeet.data.formats.dialogue import Dialogue
from lorikeet.data.steps._fences import repaired
from lorikeet.data.steps._html import to_markdown

MANY = 60_000  # squared, it is up to minutes


def said(text: str) -> str:
    return Dialogue().read({"turns": [text, "b"]}, Origin("a", 0)).messages[0].content


TEXTS: dict[str, tuple[Callable[[str], str], Callable[[int], str]]] = {
    "spaces in a copied block": (repaired, lambda many: "```\npythonCopy code\nx" + " " * many + "y"),
    "line ends in a copied block": (repaired, lambda many: "```Copy code" + "\n" * many),
    "spaces in a dialogue": (said, lambda many: "a" + " " * many + "b"),
    "tabs in code": (to_markdown, lambda many: "<p>a<br><code>a" + "\t" * many + "b</code></p>"),
    "spaces of many elements": (to_markdown, lambda many: "<p>a" + "<span> </span>" * many + "<br>b</p>"),
    "tags that nobody knows": (to_markdown, lambda many: "<p>" + "<x></x>" * many + "</p>"),
    "tags that never end": (to_markdown, lambda many: "".join(f"<p><x{n}></p>" for n in range(many // 4))),
}


@pytest.mark.parametrize("case", TEXTS)
def test_time_grows_with_the_text_and_not_with_its_square(case: str) -> None:
    change, text = TEXTS[case]

    def spent(many: int) -> float:
        start = time.process_time()
        change(text(many))
        return time.process_time() - start

    for _ in range(3):  # a machine that does other things too now and then counts what it did for them
        few, many = spent(MANY // 4), spent(MANY)
        if many < 8 * few + 0.5:  # 16 times as long, if by the square, on whatever processor
            return
    raise AssertionError((few, many))


def test_a_copied_block_is_repaired_as_before() -> None:
    assert repaired("```\npythonCopy code\nx = 1  \n \n```\nb") == "```python\nx = 1\n```\nb"
    assert repaired("```\nCopy code \n```") == ""
    assert said("a \t , b !") == "a, b!"
