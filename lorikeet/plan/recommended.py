"""Recommended models and the method that fits 8, 16 and 24 GiB: sizes from recommended.yaml, the rest computed.

`lorikeet models --recommended` prints the same table that docs/models.md has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lorikeet.plan.memory import GIB, Memory, Sizes, Trained, peak_memory

MEMORIES = (8, 16, 24)  # GiB
ROW_TOKENS, R = 1024, 16  # what a row of the table is computed for
USED = 0.9  # of the memory; the rest is the system's, or the driver's
_FIELDS = set(Sizes.__dataclass_fields__)


@dataclass(frozen=True)
class Recommended:
    """A model with its published sizes."""

    name: str  # the hub's
    alias: str | None
    family: str
    licence: str
    weights: float  # billions, as published
    context: int
    sizes: Sizes

    def memory(self, *, checkpointing: bool, nf4: bool = False) -> Memory:
        """The estimated peak of LoRA in bfloat16."""
        return peak_memory(
            self.sizes, Trained.lora(self.sizes, R), bytes_per_value=2, row_tokens=ROW_TOKENS,
            checkpointing=checkpointing, nf4=nf4,
        )  # fmt: skip

    def method(self, gib: float) -> str:
        """What fits: LoRA; `LoRA, ckpt` with gradient checkpointing; `QLoRA` on 4-bit weights; or a dash."""
        budget = gib * GIB * USED
        if self.memory(checkpointing=False).total <= budget:
            return "LoRA"
        if self.memory(checkpointing=True).total <= budget:
            return "LoRA, ckpt"
        if self.memory(checkpointing=True, nf4=True).total <= budget:
            return "QLoRA"
        return "-"


def recommended() -> list[Recommended]:
    """Smallest first."""
    rows: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return [_one(row) for row in rows]


def _one(row: dict[str, Any]) -> Recommended:
    sizes = Sizes(**{name: value for name, value in row.items() if name in _FIELDS})
    rest = {name: value for name, value in row.items() if name not in _FIELDS}
    return Recommended(**({"alias": None} | rest), sizes=sizes)


COLUMNS = ("model", "weights", "family", "licence", "context", *(f"{gib} GiB" for gib in MEMORIES))


def table() -> Iterator[tuple[str, ...]]:
    """The rows under COLUMNS, as text."""
    for model in recommended():
        name = f"{model.name} (`{model.alias}`)" if model.alias else model.name
        billions = model.sizes.parameters / 1e9
        weights = f"{billions:.1f} B" if billions >= 0.95 else f"{billions * 1000:.0f} M"
        context = f"{model.context // 1024} Ki"
        yield (name, weights, model.family, model.licence, context, *(model.method(gib) for gib in MEMORIES))


def markdown() -> str:
    """The table of docs/models.md, ending with one newline."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *table()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
