"""Whether a run that was interrupted came to what the uninterrupted one came to: two run folders, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lorikeet.train.chain import KIND, WORDS
from lorikeet.train.metrics import Metrics

# words in the names of figures that are measured, not computed; a short one would take others along (rate, match)
_MEASURED = ("seconds", "tokens_per_second", "bytes", "rss", "memory")


@dataclass(frozen=True)
class Row:
    """One thing compared."""

    what: str
    count: int  # how many tensors or steps of it there were
    difference: str | None  # None: the same in every bit

    @property
    def verdict(self) -> str:
        return "same" if self.difference is None else "DIFFERS"


def compare(whole: Path, interrupted: Path, step: int) -> list[Row]:
    """Everything that checkpoint-`step` and the metrics of the two runs hold."""
    rows = []
    for file in sorted((whole / f"checkpoint-{step}").glob("*.safetensors")):
        mine, theirs = load_file(file), _load(interrupted / f"checkpoint-{step}" / file.name)
        rows.append(Row(file.name.removesuffix(".safetensors"), len(mine), tensor_difference(mine, theirs)))
    sides = [Metrics(run / "metrics.jsonl").rows() for run in (whole, interrupted)]
    chains = [{row["step"]: row for row in side if row.get("kind") == KIND} for side in sides]
    for name, words in WORDS.items():
        found = [{step: row[name] for step, row in chain.items() if name in row} for chain in chains]
        if found[0] or found[1]:
            rows.append(Row(words, len(found[0]), _first_difference(*found)))
    for kind, words in (("train", "metrics"), ("eval", "evaluation")):
        told = [{row["step"]: computed(row) for row in side if row.get("kind") == kind} for side in sides]
        if told[0] or told[1]:
            rows.append(Row(words, len(told[0]), _first_difference(*told)))
    return rows


def computed(row: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a row of metrics that do not tell of time and memory."""
    return {name: value for name, value in row.items() if not any(word in name for word in _MEASURED)}


def tensor_difference(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is not the same in every bit, and by how much; None where all are."""
    if mine.keys() != theirs.keys():
        return f"{len(mine.keys() ^ theirs.keys())} tensors are in one only"
    wrong = [name for name, value in mine.items() if not _same(value, theirs[name])]
    if not wrong:
        return None
    left, right = mine[wrong[0]].double(), theirs[wrong[0]].double()
    by = f", by at most {(left - right).abs().max().item():.3g}" if left.shape == right.shape else ""
    return f"{len(wrong)} of {len(mine)} tensors, e.g. {wrong[0]}{by}"


def _same(left: Tensor, right: Tensor) -> bool:
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))
    )


def _load(file: Path) -> dict[str, Tensor]:
    return load_file(file) if file.is_file() else {}


def _first_difference(mine: Mapping[int, Any], theirs: Mapping[int, Any]) -> str | None:
    for step in sorted(mine.keys() | theirs.keys()):
        if mine.get(step) != theirs.get(step):
            return f"from step {step} on: {_said(mine.get(step))} and {_said(theirs.get(step))}"
    return None


def _said(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    try:
        return f"{float.fromhex(text):.9g}"
    except ValueError:
        return text[:60]


def table(rows: Sequence[Row], kills: Sequence[Mapping[str, Any]]) -> list[str]:
    """For people."""
    lines = [f"killed behind step {kill['behind_step']}, went on from step {kill['from_step']}" for kill in kills]
    width = max(len(row.what) for row in rows)
    for row in rows:
        lines.append(f"{row.what:<{width}}  {row.count:>5}  {row.verdict}  {row.difference or ''}".rstrip())
    return lines
