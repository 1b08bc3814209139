"""What every runner measures, in the same way, whatever trains: time, shapes, losses, memory.

A runner reads a job (a JSON file, made by peer_jobs.py), trains its rows with one tool and prints one line,
`RESULT {...}`. The clock starts when the first micro-batch after the warm-up begins and stops after the last optimizer
step; the peak of the process's memory is read there, too, before anything is saved. Then the process ends, so that
no tool's epilogue (saving, merging, reports) costs time.

Runs in each tool's own environment: PyTorch and the standard library only.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

Row = dict[str, Any]  # {"tokens": [id, ...], "trained": [[start, end], ...]}


def read_job() -> dict[str, Any]:
    """The job named on the command line; sets the threads."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    return job


def labels(row: Row, ignored: int = -100) -> list[int]:
    """The row's ids where they are trained, else `ignored`."""
    found = [ignored] * len(row["tokens"])
    for start, end in row["trained"]:
        found[start:end] = row["tokens"][start:end]
    return found


def ordered(job: dict[str, Any]) -> list[Row]:
    """The rows in the order in which they are trained: the warm-up's first. With length grouping, longest first, over
    all timed rows: what a length-grouped sampler makes of a run that is no longer than its megabatch."""
    first = job["warmup_steps"] * job["rows_per_step"]
    warm, timed = job["rows"][:first], job["rows"][first:]
    if job["setting"].get("grouped"):
        warm, timed = (sorted(part, key=lambda row: -len(row["tokens"])) for part in (warm, timed))
    return warm + timed


class Recorder:
    """Counts micro-batches; `warm_micro` of them are warm-up, the run ends after `total_micro`."""

    def __init__(self, names: tuple[str, ...], warm_micro: int, total_micro: int):
        self.warm_micro, self.total_micro = warm_micro, total_micro
        self.shapes: list[tuple[int, int]] = []
        self.losses: list[float] = []
        self.ends: list[float] = []
        self.began, self.start = time.perf_counter(), 0.0
        self.versions = {name: _version(name) for name in (*names, "torch")}
        register_optimizer_step_post_hook(self._stepped)

    def micro(self, rows: int, length: int) -> None:
        """A micro-batch of this padded shape begins."""
        if len(self.shapes) == self.warm_micro:
            self.start = time.perf_counter()
        self.shapes.append((rows, length))

    def loss(self, value: float) -> None:
        """A step's or a micro-batch's loss, in the tool's own terms."""
        self.losses.append(value)

    def _stepped(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())
        if len(self.shapes) >= self.total_micro:
            self.finish()

    def finish(self) -> None:
        """Print the result and leave the process at once."""
        timed = [end for end in self.ends if end > self.start]
        report(
            {
                "seconds": self.ends[-1] - self.start,
                "step_seconds": [end - before for before, end in zip([self.start, *timed], timed)],
                "warmup_seconds": self.start - self.began,
                "shapes": self.shapes[self.warm_micro :],
                "losses": self.losses,
                "versions": self.versions,
            }
        )


def report(found: dict[str, Any]) -> None:
    """Print the result with the peak memory of this process, and leave."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    print("RESULT " + json.dumps(found | {"peak_rss_gib": peak, "threads": torch.get_num_threads()}), flush=True)
    sys.stderr.flush()
    os._exit(0)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"
