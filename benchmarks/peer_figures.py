"""Arithmetic on what the runs found: ratios, utilisation, the table and the plot. No tool is needed for it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Run = dict[str, Any]
COLUMNS = (
    "tool", "setting", "tokens/s", "wall, s", "ratio to Lorikeet", "peak RSS, GiB", "first loss", "last loss",
    "padding", "utilisation, rendered alone", "utilisation, computed",
    "matmul peak, TFLOP/s", "runs",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """What the work of a model is counted from: `frozen` and `trained` parameters of its linears without the head."""

    layers: int
    width: int
    heads: int
    head_dim: int
    vocab_size: int
    frozen: int
    trained: int

    def flops(self, tokens: int, pairs: float, predictions: int) -> float:
        """Of a forward and backward pass, nothing computed twice: 4 for each frozen weight and token (its own gradient
        is not needed), 6 for each trained one, 4 for each weight of the head and prediction, and 12 for each query
        and key that meet, in every layer."""
        linears = (4 * self.frozen + 6 * self.trained) * tokens
        head = 4 * self.vocab_size * self.width * predictions
        return linears + head + 12 * self.layers * self.heads * self.head_dim * pairs

    def alone(self, rows: Sequence[tuple[int, int]]) -> float:
        """Of conversations (tokens, trained tokens) as rendered alone: nothing shared, nothing padded."""
        return sum(self.flops(tokens, tokens * (tokens + 1) / 2, trained) for tokens, trained in rows)

    def padded(self, shapes: Sequence[Sequence[int]]) -> float:
        """Of micro-batches (rows, length) whose every position goes through the head."""
        return sum(
            self.flops(rows * length, rows * length * (length + 1) / 2, rows * length) for rows, length in shapes
        )


def best(runs: Sequence[Run], count: int = 1) -> list[Run]:
    """The fastest runs that did not fail."""
    return sorted((run for run in runs if "error" not in run), key=lambda run: run["seconds"] / run["tokens"])[:count]


def middle(runs: Sequence[Run], name: str) -> float:
    """The median of a figure over the runs that did not fail."""
    return statistics.median(run[name] for run in runs if "error" not in run)


def line(tool: str, runs: Sequence[Run], ours: Sequence[Run], sizes: Sizes, alone: float, peak: float) -> Run:
    """One tool's row of the table. `alone` and `peak` are floating point operations, and those per second; the peak
    timed beside a run counts before it."""
    good = [run for run in runs if "error" not in run]
    if not good:
        return {"tool": tool, "setting": "", "error": runs[0]["error"] if runs else "not run"}
    first = good[0]
    seconds = middle(good, "seconds")
    mine = [run for run in ours if "error" not in run]
    computed = first.get("computed_flops") or sizes.padded(first["shapes"])
    peak = statistics.median(run.get("matmul_peak", peak) for run in good)
    return {
        "tool": tool, "setting": describe(first["setting"]), "seconds": seconds,
        "tokens_per_second": first["tokens"] / seconds, "ratio": seconds / middle(mine, "seconds") if mine else None,
        "peak_rss_gib": middle(good, "peak_rss_gib"),
        "first_loss": first["losses"][0], "last_loss": first["losses"][-1],
        "padding": sum(rows * length for rows, length in first["shapes"]) / first["tokens"],
        "utilisation_alone": alone / seconds / peak, "utilisation_computed": computed / seconds / peak,
        "matmul_peak_tflops": peak / 1e12, "seconds_of_runs": [run["seconds"] for run in good],
        "versions": first["versions"],
        "warmup_seconds": middle(good, "warmup_seconds"), "compile_seconds": first.get("compile_seconds"),
        "others_during": max(run.get("others_during") or 0 for run in good),
    }  # fmt: skip


def describe(setting: dict[str, Any]) -> str:
    """A setting in a few words."""
    if not setting:
        return "as it ships"
    if "micro_batch" not in setting:
        return ", ".join(f"{name} {value}" for name, value in setting.items())
    words = [f"packing {setting['packing']}" if setting.get("packing") else f"micro-batch {setting['micro_batch']}"]
    words += ["grouped by length"] if setting.get("grouped") else []
    words += ["checkpointing"] if setting.get("checkpointing") else []
    return ", ".join([*words, f"adapters {setting['adapters']}"])


def table(lines: Sequence[Run]) -> str:
    """Markdown."""
    rows = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for one in lines:
        if "error" in one:
            text = one["error"].replace("|", "/").replace("\n", " ")
            cells = [one["tool"], f"failed: {text[:160]}", *[""] * (len(COLUMNS) - 2)]
        else:
            ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
            cells = [
                one["tool"], one["setting"], f"{one['tokens_per_second']:,.0f}", f"{one['seconds']:.1f}", ratio,
                f"{one['peak_rss_gib']:.2f}", f"{one['first_loss']:.4f}", f"{one['last_loss']:.4f}",
                f"{one['padding']:.2f}x", f"{one['utilisation_alone']:.1%}", f"{one['utilisation_computed']:.1%}",
                f"{one['matmul_peak_tflops']:.2f}",
                " ".join(f"{seconds:.1f}" for seconds in one["seconds_of_runs"]),
            ]  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def plot(found: dict[str, Any], file: Path) -> None:
    """Bars: tokens per second and peak memory of every tool, a row of panels for each workload.

    Raises ModuleNotFoundError where matplotlib is not installed."""
    from matplotlib.figure import Figure

    names = list(found)
    figure = Figure(figsize=(9, 0.6 + 1.9 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False)
    for row, name in zip(panels, names):
        lines = [one for one in found[name]["lines"] if "error" not in one][::-1]
        colours = ["#2a7f62" if one["tool"] == "lorikeet" else "#9aa5b1" for one in lines]
        for axes, key, title in zip(row, ("tokens_per_second", "peak_rss_gib"), ("tokens/s", "peak memory, GiB")):
            bars = axes.barh([one["tool"] for one in lines], [one[key] for one in lines], color=colours)
            axes.bar_label(bars, fmt="%.0f" if key == "tokens_per_second" else "%.2f", padding=3)
            axes.set_title(f"{name}: {title}", loc="left", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            axes.margins(x=0.15)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
