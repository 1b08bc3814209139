"""The package's source as syntax trees: what the tests that hold the house look at."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import lorikeet

PACKAGE = Path(lorikeet.__file__).parent
REPOSITORY = PACKAGE.parent


@lru_cache
def files() -> tuple[Path, ...]:
    return tuple(sorted(PACKAGE.rglob("*.py")))


@lru_cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name(path: Path) -> str:
    """`train/step.py`, for messages."""
    return path.relative_to(PACKAGE).as_posix()


def module(path: Path) -> str:
    """`lorikeet.train.step`."""
    return ".".join(("lorikeet", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def imports(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module imported anywhere below `node`, with its line; `from a import b` gives a.b."""
    for one in ast.walk(node):
        if isinstance(one, ast.Import):
            yield from ((alias.name, one.lineno) for alias in one.names)
        elif isinstance(one, ast.ImportFrom):
            assert one.level == 0, f"line {one.lineno}: imports are absolute here"
            yield from ((f"{one.module}.{alias.name}", one.lineno) for alias in one.names)
