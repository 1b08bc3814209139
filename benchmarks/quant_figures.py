"""Arithmetic on what was measured of kinds of storage: taking turns, ratios, and the tables. Nothing is loaded here."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


def in_turns(jobs: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """What each job returned in each round. Every round begins with another job, so that none is always first."""
    names, found = list(jobs), {name: list[float]() for name in jobs}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(jobs[name](number))
    return found


def against(seconds: Mapping[str, Sequence[float]], base: str) -> dict[str, Figures]:
    """Of each job: its least and middle time, and its times over those of `base`: the middle of the rounds' ratios (the
    two of a round ran minutes apart at most) and the ratio of the least times."""
    found: dict[str, Figures] = {}
    for name, mine in seconds.items():
        paired = [one / other for one, other in zip(mine, seconds[base])]
        found[name] = {
            "least": min(mine), "middle": statistics.median(mine), "ratio": statistics.median(paired),
            "ratio_of_least": min(mine) / min(seconds[base]), "all": list(mine),
        }  # fmt: skip
    return found


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def speed_table(found: Mapping[str, Figures], memory: Mapping[str, float]) -> str:
    """Of `against`'s answer for steps; `memory`: peak GiB of those kinds that were measured alone."""
    rows = [
        (kind, f"{one['middle']:.2f}", f"{one['least']:.2f}", f"{one['ratio']:.2f}", f"{one['ratio_of_least']:.2f}",
         f"{memory[kind]:.2f}" if kind in memory else "")
        for kind, one in found.items()
    ]  # fmt: skip
    return markdown(("kind", "a step, s", "least", "times bf16's", "of the least", "peak RSS, GiB"), rows)


def memory_table(memory: Mapping[str, float]) -> str:
    """Peak GiB of each kind."""
    return markdown(("kind", "peak RSS, GiB"), [(kind, f"{size:.2f}") for kind, size in memory.items()])


def decode_table(found: Mapping[str, Mapping[str, Figures]], tokens: Mapping[str, int], base: str) -> str:
    """Of `against`'s answers for each batch; `tokens`: how many one call of each batch made."""
    columns = ["kind"]
    for batch in found:
        columns += [f"{batch}, tokens/s", "times bf16's time"]
    kinds = list(next(iter(found.values())))
    rows = []
    for kind in kinds:
        row = [kind]
        for batch, figures in found.items():
            one = figures[kind]
            row += [f"{tokens[batch] / one['middle']:.0f}", f"{one['ratio']:.2f}" if kind != base else "1"]
        rows.append(row)
    return markdown(columns, rows)


def quality_table(runs: Mapping[str, Figures]) -> str:
    """One row for each kind that was run: what it costs in bits, what it does to the held-out loss."""
    columns = ("kind", "bits a weight", "held-out loss before", "after", "tokens/s", "peak RSS, GiB")
    rows = []
    for kind, run in runs.items():
        if "error" in run:
            rows.append([kind, f"failed: {run['error'][:120]}".replace("|", "/"), "", "", "", ""])
            continue
        rows.append([
            kind, f"{run['bits']:.2f}", f"{run['loss_before']:.4f}", f"{run['loss_after']:.4f}",
            f"{run['tokens_per_second']:.0f}", f"{run['training_peak_rss_gib']:.2f}",
        ])  # fmt: skip
    return markdown(columns, rows)


def quality_plot(models: Mapping[str, Mapping[str, Figures]], file: Path) -> None:
    """For each model a panel: the held-out loss of each kind, before and after training, the fewest bits at the top.

    Raises ModuleNotFoundError where matplotlib is not installed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(models), 3.4), layout="constrained")
    for axes, (model, runs) in zip(figure.subplots(1, len(models), squeeze=False)[0], models.items()):
        runs = dict(sorted(runs.items(), key=lambda item: -item[1]["bits"]))
        for height, run in enumerate(runs.values()):
            before, after = run["loss_before"], run["loss_after"]
            axes.plot([before, after], [height, height], "-", color="#b9c7c0", linewidth=2, zorder=1)
            axes.plot(before, height, "o", color="#9a9a9a", label="" if height else "before")
            axes.plot(after, height, "o", color="#2a7f62", label="" if height else "after training")
        axes.set_yticks(range(len(runs)), [f"{kind}  ({run['bits']:.2f})" for kind, run in runs.items()])
        axes.set_title(f"{model}: held-out loss", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#e6e6e6")
        axes.legend(frameon=False, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def of_tool(runs: Sequence[Figures], setting: str) -> Figures:
    """The rounds of one tool with one setting: seconds of each, the largest peak, the first loss."""
    return {
        "tool": runs[0]["tool"], "setting": setting, "seconds": [run["seconds"] for run in runs],
        "tokens": runs[0]["tokens"], "peak_rss_gib": max(run["peak_rss_gib"] for run in runs),
        "loss": runs[0]["losses"][0],
    }  # fmt: skip


def peer_table(pairs: Sequence[Sequence[Figures]]) -> str:
    """Pairs of `of_tool`'s answers, ours first: ours beside the other's."""
    columns = ("tool", "setting", "tokens/s", "times as fast", "peak RSS, GiB", "of the other's", "first loss")
    cells = []
    for ours, theirs in pairs:
        faster = statistics.median(there / here for here, there in zip(ours["seconds"], theirs["seconds"]))
        smaller = ours["peak_rss_gib"] / theirs["peak_rss_gib"]
        for one, ratios in ((ours, (f"{faster:.2f}", f"{smaller:.2f}")), (theirs, ("", ""))):
            cells.append(
                (one["tool"], one["setting"], f"{one['tokens'] / statistics.median(one['seconds']):.0f}", ratios[0],
                 f"{one['peak_rss_gib']:.2f}", ratios[1], f"{one['loss']:.4f}")
            )  # fmt: skip
    return markdown(columns, cells)
