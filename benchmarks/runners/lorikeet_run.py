"""Lorikeet: the recipe as `lorikeet train` opens it, timed step by step; the same result line as the other tools'."""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from recorder import read_job, report
from train_speed import Workload, model_flops

from lorikeet import config
from lorikeet.kernels.build import compile_seconds


def main() -> None:
    began, job = time.perf_counter(), read_job()
    work = Workload(config.parse(job["recipe"]))
    losses = [work.step(number)[0].loss for number in range(job["warmup_steps"])]
    ends, shapes, flops = [time.perf_counter()], [], 0.0
    for number in range(job["warmup_steps"], job["warmup_steps"] + job["steps"]):
        result, rows = work.step(number)
        ends.append(time.perf_counter())
        losses.append(result.loss)
        shapes += [(1, len(row.tokens)) for row in rows]
        flops += model_flops(work.model, work.trainable, rows)
    report({
        "seconds": ends[-1] - ends[0], "step_seconds": [end - before for before, end in pairwise(ends)],
        "warmup_seconds": ends[0] - began, "ready_seconds": work.ready_seconds, "shapes": shapes, "losses": losses,
        "computed_flops": flops, "row_tokens": work.row_tokens, "compile_seconds": compile_seconds(),
        "versions": {"lorikeet": version("lorikeet-llm"), "torch": version("torch")},
    })  # fmt: skip


if __name__ == "__main__":
    main()
