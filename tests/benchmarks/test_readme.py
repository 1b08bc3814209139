"""benchmarks/README.md says what every file is."""

from __future__ import annotations

from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_benchmark_is_in_the_table() -> None:
    said = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert [file.name for file in sorted(BENCHMARKS.glob("*.py")) if f"`{file.name}`" not in said] == []
