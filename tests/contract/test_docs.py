"""What the pages say about the code is so: their links lead somewhere, and the tree on the page is the tree on disk."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from contract import source

PAGES = [source.REPOSITORY / "README.md", *sorted((source.REPOSITORY / "docs").glob("*.md"))]
ARCHITECTURE = source.REPOSITORY / "docs" / "architecture.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_that_are_linked_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.*)", text, re.M)
    headings = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def test_the_tree_on_the_architecture_page_has_every_file() -> None:
    tree = ARCHITECTURE.read_text(encoding="utf-8").split("```text\nlorikeet/\n")[1].split("```")[0]
    words = set(re.findall(r"[\w./]+", tree))
    # folders whose kinds stand on one line, without .py
    listed = {"formats", "templates", "families", "steps", "gguf_layouts", "engines"}
    written = {path: path.stem if path.parent.name in listed else path.name for path in source.files()}
    kept = {path: word for path, word in written.items() if path.stem != "__init__"}
    assert [source.name(path) for path, word in kept.items() if word not in words] == []
    files = {path.name for path in source.files()}
    assert {word for word in words if word.endswith(".py")} <= files


def test_the_tests_named_on_the_architecture_page_exist() -> None:
    named = re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/[^)]+)\)", ARCHITECTURE.read_text(encoding="utf-8"))
    assert len(named) >= 10
    for test, file in named:
        assert f"def {test}(" in (source.REPOSITORY / file).read_text(encoding="utf-8"), test
