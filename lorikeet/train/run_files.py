"""A run's folder, read from outside: what each file says, however little of it is there or whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lorikeet.base.errors import OutputError
from lorikeet.train.status import STATUS, holder, read_status

METRICS, SAMPLES, SUMMARY, RECIPE = "metrics.jsonl", "samples.jsonl", "summary.json", "recipe.yaml"
_DEEPEST = 3  # folders below the one that is asked for


@dataclass
class RunFiles:
    """What a run's folder says. `problems` are lines about what could not be read."""

    folder: Path
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    summary: dict[str, Any]
    status: dict[str, Any]
    recipe: dict[str, Any]
    problems: list[str] = field(default_factory=list)

    @property
    def train(self) -> list[dict[str, Any]]:
        """Rows about steps."""
        return [row for row in self.metrics if row.get("kind") == "train"]

    @property
    def evals(self) -> list[dict[str, Any]]:
        """Rows about held-out data."""
        return [row for row in self.metrics if row.get("kind") == "eval"]

    def state(self) -> tuple[str, str | None]:
        """(running, finished, stopped, failed or killed; why, where that is known).

        A stopped or killed run goes on with the same command. Killed is what nobody wrote down: the status says
        `running` and nobody holds the folder."""
        if holder(self.folder) is not None:
            return "running", None
        if self.summary.get("ended_by"):
            return "stopped", str(self.summary["ended_by"])
        if self.summary:
            return "finished", None
        said, why = self.status.get("state"), self.status.get("why")
        if said == "running":
            return "killed", None
        if said in ("stopped", "failed", "finished"):
            return said, str(why) if why else None
        return "stopped", None  # from before there was a status.json


def read_run(folder: Path) -> RunFiles:
    """Read a run's folder. Raises OutputError where it does not exist."""
    if not folder.is_dir():
        raise OutputError(
            f"there is no run folder '{folder}'", given=folder, try_="the output_dir of a run that has started"
        )
    problems: list[str] = []
    metrics = read_rows(folder / METRICS, problems)
    samples = read_rows(folder / SAMPLES, problems)
    summary = _mapping(folder / SUMMARY, problems)
    return RunFiles(folder, metrics, samples, summary, read_status(folder), read_recipe(folder), problems)


def read_started(folder: Path) -> RunFiles:
    """Read the folder of a run. Raises OutputError where there is none, or where the folder is none of a run."""
    files = read_run(folder)
    if not is_run(folder):
        raise OutputError(
            f"{folder} is not a run's folder",
            given=" ".join(sorted(path.name for path in folder.iterdir())[:6]) or "an empty folder",
            allowed=f"a folder with {METRICS}",
            try_=f"lorikeet runs {folder}   to see the runs below it",
        )
    return files


def is_run(folder: Path) -> bool:
    """Whether a run has begun in this folder."""
    if (folder / METRICS).is_file() or (folder / STATUS).is_file():
        return True
    return (folder / RECIPE).is_file() and ((folder / ".lock").is_file() or (folder / SUMMARY).is_file())


def find_runs(folder: Path, depth: int = _DEEPEST) -> Iterator[Path]:
    """The runs in a folder: the folder itself, or those below it. Nothing inside a run is one."""
    if is_run(folder):
        yield folder
        return
    if depth == 0:
        return
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # a folder one may not look into
        return
    for path in below:
        if not path.is_symlink():
            yield from find_runs(path, depth - 1)


def read_rows(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line. Half a line, as a killed run leaves it, is counted and skipped."""
    if not path.is_file():
        return []
    rows, skipped = [], 0
    for line in path.read_text("utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            skipped += 1
    if skipped:
        problems.append(f"{path.name}: {skipped} {'line' if skipped == 1 else 'lines'} could not be read.")
    return rows


def read_recipe(folder: Path) -> dict[str, Any]:
    """recipe.yaml as plain values; empty where there is none, or none that can be read."""
    try:
        found = yaml.load((folder / RECIPE).read_text("utf-8"), yaml.CSafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        problems.append(f"{path.name} could not be read.")
        return {}
    return value
