"""Every option is read somewhere, says what it means, and stands in docs/options.md."""

from __future__ import annotations

import ast

import pytest

from contract import source
from lorikeet.base.option_fields import option_classes
from lorikeet.base.options import Options
from lorikeet.cli.options_page import page
from lorikeet.config import Recipe


def reachable(top: type[Options]) -> list[type[Options]]:
    found = [top]
    for field in top.model_fields.values():
        for one in option_classes(field.annotation):
            found += [below for below in reachable(one) if below not in found]
    return found


OPTIONS = [(one, name) for one in reachable(Recipe) for name in one.model_fields if name != "kind"]
IDS = [f"{one.__name__}.{name}" for one, name in OPTIONS]


def attributes_read() -> set[str]:
    """Names read as an attribute of something, or by getattr or get with a literal name, anywhere in the package."""
    found: set[str] = set()
    for path in source.files():
        for node in ast.walk(source.tree(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
                found |= {item.value for item in node.args[1:2] if isinstance(item, ast.Constant)}
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "get":  # a validator of raw values
                found |= {str(item.value) for item in node.args[:1] if isinstance(item, ast.Constant)}
    return found


READ = attributes_read()


@pytest.mark.parametrize("one, name", OPTIONS, ids=IDS)
def test_every_option_is_read(one: type[Options], name: str) -> None:
    assert name in READ, f"{one.__name__}.{name} is declared and never read"


@pytest.mark.parametrize("one, name", OPTIONS, ids=IDS)
def test_every_option_says_what_it_means(one: type[Options], name: str) -> None:
    description = one.model_fields[name].description
    assert description and description.endswith("."), f"{one.__name__}.{name} needs a sentence"


def test_the_options_page_is_up_to_date() -> None:
    written = (source.REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    assert written == page(Recipe), "run: lorikeet schema --markdown > docs/options.md"


def test_every_option_is_on_the_page() -> None:
    text = page(Recipe)
    for _, name in OPTIONS:
        assert f"{name}`" in text or f"\n## {name}\n" in text
