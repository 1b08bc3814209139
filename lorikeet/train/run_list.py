"""`lorikeet runs`: the runs below some folders in one table, each with its state, how far it is and its best figure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorikeet.base.errors import OutputError
from lorikeet.base.machine import folder_bytes
from lorikeet.train.charts import number
from lorikeet.train.run_files import RunFiles, find_runs, read_run

HEADS = ("run", "state", "step", "best", "size", "model", "adapter", "changed")


def list_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Facts about every run in these folders or below them, by path. Raises OutputError for a folder that is none."""
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise OutputError(
                f"there is no folder '{folder}'" if not folder.exists() else f"{folder} is a file",
                given=str(folder),
                allowed="folders with runs in them",
                try_="lorikeet runs .",
            )
        found |= {run.resolve(): run for run in find_runs(folder)}
    return [facts(read_run(run)) for run in sorted(found.values())]


def facts(files: RunFiles) -> dict[str, Any]:
    """What the table says about one run, for programs."""
    state, why = files.state()
    recipe, last = files.recipe, max((_step(row) for row in files.metrics), default=0)
    steps = files.status.get("steps", files.summary.get("steps"))
    adapter, quant = _kind(recipe, "adapter", "lora"), _kind(recipe, "quant", "none")
    model = recipe.get("model")
    return {
        "run": str(files.folder),
        "state": state,
        "why": why,
        "step": last,
        "steps": steps if isinstance(steps, int) else None,
        "best": best(files),
        "size_bytes": folder_bytes(files.folder),
        "model": str(model.get("path")) if isinstance(model, dict) and model.get("path") else None,
        "adapter": adapter if recipe else None,
        "quant": quant if recipe else None,
        "changed": int(_changed(files.folder)),
    }


def best(files: RunFiles) -> dict[str, Any] | None:
    """{"name", "value", "step"} of the best held-out figure, going by what the recipe calls best (the loss unless it
    says otherwise); of the last training loss where nothing is held out."""
    wanted, higher = _wanted(files.recipe)
    found = [(value, _step(row)) for row in files.evals if (value := number(row.get(wanted))) is not None]
    if found:
        value, step = (max if higher else min)(found, key=lambda one: one[0])
        return {"name": f"eval {wanted}", "value": value, "step": step}
    for row in reversed(files.train):
        if (loss := number(row.get("loss"))) is not None:
            return {"name": "train loss", "value": loss, "step": _step(row)}
    return None


def table(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table for people, a line per run below a head."""
    rows = [HEADS, *(_cells(run) for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def in_units(size: float) -> str:
    """853 B, 12 KiB, 1.4 GiB."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 999.5:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if size >= 100 else f"{size:.3g} {unit}"


def _cells(run: Mapping[str, Any]) -> tuple[str, ...]:
    found, state = run["best"], run["state"]
    if run["why"] and state == "failed":
        state = f"failed ({run['why'].split(':')[0]})"
    adapter = run["adapter"] or "?"
    return (
        run["run"],
        state,
        f"{run['step']}/{run['steps']}" if run["steps"] else str(run["step"]),
        f"{found['name']} {found['value']:.4g} @ {found['step']}" if found else "-",
        in_units(run["size_bytes"]),
        run["model"] or "?",
        adapter if run["quant"] in (None, "none") else f"{adapter} on {run['quant']}",
        _ago(time.time() - run["changed"]),
    )


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return "now"


def _step(row: Mapping[str, Any]) -> int:
    step = row.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) else 0


def _kind(recipe: Mapping[str, Any], section: str, default: str) -> str:
    value = recipe.get(section, default)
    return str(value.get("kind", default) if isinstance(value, dict) else value)


def _wanted(recipe: Mapping[str, Any]) -> tuple[str, bool]:
    for section in ("evaluate", "train"):
        options = recipe.get(section)
        if isinstance(options, dict) and isinstance(options.get("metric_for_best_model"), str):
            name = options["metric_for_best_model"].removeprefix("eval_")
            higher = options.get("greater_is_better")
            return name, bool(higher) if higher is not None else not name.endswith(("loss", "perplexity"))
    return "loss", False


def _changed(folder: Path) -> float:
    times = [0.0]
    for name in (".", "metrics.jsonl", "status.json", "summary.json", "train.log"):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)
