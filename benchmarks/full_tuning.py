"""All weights of SmolLM2-135M trained by Lorikeet and by TRL, on the same rows: speed and peak memory.

    python benchmarks/full_tuning.py --data alpaca_en_demo.json [--venvs FOLDER] [--rounds 3]

The rows are W1's (workloads.py), 16 conversations a step; TRL's environment is the one `peers.py install --peer trl`
makes. TRL's best setting is found first, by short runs over micro-batch sizes, then with and without grouping,
checkpointing, and float32 weights under autocast or bfloat16 ones; then both run in turns. Lorikeet keeps float32
masters in every row of the table: as it ships, and with the optimizer in the backward pass and layers computed twice,
where a step is one row. Every run is remembered in `--results`; with `--runs 1` a start adds one and ends, so that
others get the machine in between.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
import workloads
from peer_figures import Run, best
from peer_jobs import FULL, LORIKEET, SHORT, Jobs, Setting, Size, candidates, code, key_of, neighbours
from peers import peak, quiet, say
from workloads import WORKLOADS, Workload

RATE = 2e-5  # for all weights; LoRA's would be ten times that
OURS: dict[str, Setting] = {
    "as it ships": {},
    "least memory": {
        "optimizer_in_backward": True, "max_grad_norm": 0.0, "gradient_checkpointing": True, "row_tokens": 8192,
    },
}  # fmt: skip


class Enough(Exception):
    """As many runs as were asked for are done."""


class FullJobs(Jobs):
    """The same jobs with nothing frozen."""

    most: int | None = None  # new runs

    def run(self, tool: str, work: Workload, size: Size, setting: Setting, *, round_: str = "") -> Run:
        if key_of(tool, work, size, setting, self.threads, round_) not in self.done():
            if self.most == 0:
                raise Enough
            self.most = None if self.most is None else self.most - 1
        return super().run(tool, work, size, setting, round_=round_)

    def _recipe(self, work: Workload, size: Size | None, **train: Any) -> dict[str, Any]:
        made = super()._recipe(work, size, **train)
        made["adapter"] = {"kind": "full"}
        made["train"]["learning_rate"] = RATE
        return made


def trl(jobs: Jobs, work: Workload) -> Setting | None:
    """TRL's fastest setting of short runs; None where none ran."""
    full = {"full": True}
    runs = [say(jobs.run("trl", work, SHORT[work.name], one | full)) for one in candidates("trl", work.name)]
    for leader in best(runs):
        runs += [say(jobs.run("trl", work, SHORT[work.name], one)) for one in neighbours("trl", leader["setting"])]
    found = best(runs)
    return found[0]["setting"] if found else None


def line(name: str, runs: list[Run], reference: list[Run]) -> dict[str, Any]:
    """One row of the table: medians, and ratios to TRL."""
    done = [run for run in runs if "error" not in run]
    if not done:
        return {"who": name, "error": runs[0].get("error", "?")}
    speed = statistics.median(run["tokens_per_second"] for run in done)
    memory = max(run["peak_rss_gib"] for run in done)
    found = {"who": name, "tokens_per_second": speed, "peak_rss_gib": memory, "losses": done[0]["losses"]}
    theirs = [run for run in reference if "error" not in run]
    if theirs:
        found["times_trl_speed"] = speed / statistics.median(run["tokens_per_second"] for run in theirs)
        found["of_trl_memory"] = memory / max(run["peak_rss_gib"] for run in theirs)
    return found


def compare(jobs: Jobs, work: Workload, rounds: int, *, ours_only: bool) -> list[dict[str, Any]]:
    """The table's rows, measured in turns."""
    chosen = None if ours_only else trl(jobs, work)
    settings = {f"lorikeet, {name}": (LORIKEET, setting) for name, setting in OURS.items()}
    settings |= {} if chosen is None else {"trl": ("trl", chosen)}
    runs: dict[str, list[Run]] = {name: [] for name in settings}
    for number in range(rounds):
        for name, (tool, setting) in settings.items():
            round_ = f"{code()} round {number + 1}"
            runs[name].append(say(jobs.run(tool, work, FULL[work.name], setting, round_=round_)))
    return [line(name, runs[name], runs.get("trl", [])) for name in settings]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="alpaca rows: alpaca_en_demo.json")
    parser.add_argument("--venvs", type=Path, default=workloads.FOLDER / "venvs", help="where trl's environment is")
    parser.add_argument("--folder", type=Path, default=workloads.FOLDER, help="where rows, models and jobs go")
    parser.add_argument("--results", type=Path, default=workloads.FOLDER / "full_tuning.json", help="what was run")
    parser.add_argument("--rounds", type=int, default=3, help="how often each runs, in turns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=900, help="seconds a run may take")
    parser.add_argument("--busy", action="store_true", help="measure although others are running")
    parser.add_argument("--runs", type=int, help="stop after so many new runs; the next start goes on")
    parser.add_argument("--ours", action="store_true", help="leave TRL out")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if not quiet(asked.busy):
        return 1
    jobs = FullJobs(asked.data, asked.folder, asked.venvs, asked.results, threads=asked.threads, limit=asked.limit)
    jobs.peak, jobs.most = peak, asked.runs
    try:
        for one in compare(jobs, WORKLOADS["W1"], asked.rounds, ours_only=asked.ours):
            print(json.dumps(one))
    except Enough:
        print(f"{asked.runs} new run{'s' * (asked.runs != 1)}; the next start goes on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
