"""Which versions are here, which optional packages are not, and what each of those would bring.

Nothing of this is a list kept by hand: the extras and their packages are the distribution's own metadata, and what an
extra is for is read from the code, where each `require(package, extra=..., needed_by=...)` says it.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "lorikeet-llm"


@dataclass(frozen=True)
class Extra:
    """An optional part of the installation."""

    name: str
    packages: tuple[str, ...]  # as required, e.g. "pyarrow>=17"
    missing: tuple[str, ...]  # those that are not installed
    brings: tuple[str, ...]  # what the code says it needs it for; empty: nothing at run time, it is for developers

    @property
    def install(self) -> str:
        """The line that installs it."""
        return f"pip install '{DISTRIBUTION}[{self.name}]'"


def version(distribution: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def extras() -> list[Extra]:
    """Every extra of this distribution, in the order of its metadata."""
    found = []
    uses = needs(Path(__file__).parents[1])
    about = metadata.metadata(DISTRIBUTION)
    required = metadata.requires(DISTRIBUTION) or []
    for name in about.get_all("Provides-Extra") or []:
        packages = tuple(dict.fromkeys(_packages(required, name)))
        missing = tuple(package for package in packages if version(_name(package)) is None)
        found.append(Extra(name, packages, missing, tuple(uses.get(name, ()))))
    return found


def needs(package: Path) -> dict[str, list[str]]:
    """extra -> what needs it, from the calls of `require` in the files below `package`."""
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "require(" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", getattr(node.func, "attr", "")) != "require":
                continue
            said = {keyword.arg: _words(keyword.value) for keyword in node.keywords}
            extra, need = said.get("extra"), said.get("needed_by")
            if extra and need and need not in found.setdefault(extra, []):
                found[extra].append(need)
    return found


def _words(value: ast.expr) -> str:
    """A string, or an f-string with its inserted values in angle brackets."""
    if isinstance(value, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"<{_last_name(part)}>" for part in value.values
        )
    return str(value.value) if isinstance(value, ast.Constant) else f"<{_last_name(value)}>"


def _last_name(node: ast.expr) -> str:
    value = node.value if isinstance(node, ast.FormattedValue) else node
    names = [getattr(below, "attr", getattr(below, "id", "")) for below in ast.walk(value)]
    return next((name for name in names if name), "...")


def _packages(required: list[str], extra: str, seen: frozenset[str] = frozenset()) -> list[str]:
    """The requirements that `extra` adds; an extra of ours among them is replaced by its own."""
    found, seen = [], seen | {extra}
    for line in required:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        if not re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", marker):
            continue
        inner = re.match(rf"{re.escape(DISTRIBUTION)}\[([^\]]*)\]", requirement)
        if inner is None:
            found.append(requirement)
            continue
        for other in (part.strip() for part in inner[1].split(",")):
            found += [] if other in seen else _packages(required, other, seen)
    return found


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    assert match is not None, requirement
    return match[0]
