"""What became of the rows: a table for people, report.json for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

_MOST_REASONS = 12  # lines a step may take; a data set has a hundred languages


@dataclass(frozen=True)
class Report:
    """Counts of a whole run. `steps` are the logs' counts, reading first."""

    identity: str
    output: str
    files: dict[str, int]  # rows of each input
    rows_out: int
    steps: list[dict[str, Any]]

    @property
    def rows_in(self) -> int:
        """Rows of all inputs."""
        return sum(self.files.values())

    def total(self, what: str) -> int:
        """Rows that the steps `dropped` or `merged` altogether, or the `parts` they made."""
        found = (step[what] for step in self.steps)
        return sum(one if isinstance(one, int) else sum(one.values()) for one in found)

    def check(self) -> None:
        """Nothing disappeared."""
        left = self.rows_out + self.total("dropped") + self.total("merged")
        assert self.rows_in + self.total("parts") == left, f"rows do not balance: {self}"

    def as_json(self) -> bytes:
        """For report.json."""
        totals = {"rows_in": self.rows_in, "parts": self.total("parts"), "rows_out": self.rows_out}
        totals |= {"rejected": self.total("dropped"), "merged": self.total("merged")}
        values = asdict(self)
        steps = values.pop("steps")
        return orjson.dumps(
            {**values, **totals, "steps": steps}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
        )

    def lines(self) -> Iterator[str]:
        """The table."""
        width = max(18, *(len(step["step"]) + 2 for step in self.steps))
        yield f"{'step':<{width}}{'in':>10}{'changed':>10}{'dropped':>10}{'merged':>10}{'parts':>10}{'out':>10}"
        for step in self.steps:
            dropped, merged = sum(step["dropped"].values()), sum(step["merged"].values())
            counts = (step["rows_in"], step["changed"], dropped, merged, step["parts"], step["rows_out"])
            yield f"{step['step']:<{width}}" + "".join(f"{count or '-':>10}" for count in counts)
            yield from _reasons(step)
        added = f" + {self.total('parts')} parts" if self.total("parts") else ""
        yield (
            f"{self.rows_in} rows in{added} = {self.rows_out} rows out + {self.total('dropped')} rejected"
            f" + {self.total('merged')} merged away"
        )


def _reasons(step: dict[str, Any]) -> Iterator[str]:
    kinds = (("changes", "changed"), ("cuts", "turns left out"), ("dropped", "dropped"), ("merged", "merged"))
    for kind, word in (*kinds, ("seen", "seen")):
        found = sorted(step[kind].items(), key=lambda item: -item[1])
        for reason, count in found[:_MOST_REASONS]:
            yield f"    {count:>8}  {word}: {reason}"
        if len(found) > _MOST_REASONS:
            rest = sum(count for _, count in found[_MOST_REASONS:])
            yield f"    {rest:>8}  {word}: {len(found) - _MOST_REASONS} others"


def companion(output: Path, kind: str) -> Path:
    """The file of that kind beside an output: clean.jsonl has clean.report.json."""
    return output.with_name(f"{output.stem}.{kind}")


def finished(output: Path, identity: str) -> Report | None:
    """The report of an output that is there, whole, and of this identity."""
    path = companion(output, "report.json")
    try:
        values = orjson.loads(path.read_bytes())
        report = Report(*(values[name] for name in ("identity", "output", "files", "rows_out", "steps")))
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return None
    # NAME.json has the same report beside it as NAME.jsonl
    same = report.identity == identity and Path(report.output).name == output.name
    return report if same and output.is_file() else None
