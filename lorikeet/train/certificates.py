"""The certificates that belong to a run: what was proven about it, wherever `lorikeet verify` put the paper.

A certificate is a JSON file that says `passed`. It belongs to a run by lying in its folder or, beside it, by naming the
run or what the run was made of: the tokenizer's and the template's hash, or those of base and data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MOST_FIGURES = 8


@dataclass(frozen=True)
class Certificate:
    """One of them, for a reader."""

    about: str  # merge, resume, invariance, template
    passed: bool
    path: str  # from the run's folder
    written: str
    figures: list[tuple[str, str]]


def certificates(run: Path) -> list[Certificate]:
    """Those of a run, the newest last."""
    found, identity = [], _identity(run)
    for path in _candidates(run):
        try:
            value = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if not isinstance(value, dict) or not isinstance(value.get("passed"), bool):
            continue
        if run.resolve() in path.resolve().parents or _names(value, run) or _same(value, identity):
            found.append(_shown(path, value, run))
    return sorted(found, key=lambda one: (one.written, one.path))


def _candidates(run: Path) -> Iterator[Path]:
    beside = run.resolve().parent
    yield from sorted(run.glob("*certificate*.json"))
    yield from sorted(run.glob("*/*certificate*.json"))
    yield from sorted(beside.glob("*certificate*.json"))
    yield from sorted(path for path in beside.glob("*/*certificate*.json") if path.parent != run.resolve())


def _names(value: Mapping[str, Any], run: Path) -> bool:
    """Whether a certificate says that it is about this run."""
    places = [value.get("run"), value.get("output_dir")]
    places += [inner.get("path") for inner in (value.get("trained"), value.get("run")) if isinstance(inner, dict)]
    wanted = {run.resolve(), run.resolve() / "adapter"}
    for place in places:
        if isinstance(place, str) and place:
            try:
                if Path(place).resolve() in wanted:
                    return True
            except (OSError, ValueError):
                continue
    return False


def _identity(run: Path) -> dict[str, Any]:
    """What the run was made of, by hash, from its adapter; before there is one from a checkpoint."""
    from lorikeet.adapters._storage import IDENTITY  # loads torch, which a list of runs does without

    for path in (run / "adapter" / IDENTITY, *sorted(run.glob(f"checkpoint-*/{IDENTITY}"))):
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _same(value: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    data = value.get("data")
    there = {name: value[name] for name in value if name.endswith("_fingerprint")}
    there |= {"data": data["sha256"]} if isinstance(data, dict) and isinstance(data.get("sha256"), str) else {}
    return len(there) >= 2 and all(identity.get(name) == said for name, said in there.items())


def _shown(path: Path, value: Mapping[str, Any], run: Path) -> Certificate:
    about = next((name for name in ("merge", "template", "invariance", "resume") if name in path.name), None)
    about = about or ("merge" if "merged" in value else "template" if "template" in value else path.parent.name)
    measured: dict[str, Any] = next(
        (value[key] for key in ("measured", "counts", "figures") if isinstance(value.get(key), dict)), {}
    )
    figures = [(str(name).replace("_", " "), _figure(found)) for name, found in measured.items()]
    if not figures and isinstance(value.get("rows"), list):
        broken = value.get("broken")
        figures = [("checks", str(len(value["rows"]))), ("broken", ", ".join(map(str, broken)) if broken else "none")]
    written = value.get("written")
    shown = [one for one in figures if one[1]][:_MOST_FIGURES]
    told = os.path.relpath(path.resolve(), run.resolve())
    return Certificate(about, value["passed"], told, written if isinstance(written, str) else "", shown)


def _figure(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else ""
