"""What a checkpoint costs, and what going on costs: two times that decide how often a run may be saved and stopped.

    python benchmarks/checkpoint_time.py                    SmolLM2, LoRA in bfloat16
    python benchmarks/checkpoint_time.py --folder /mnt/ssd  on another disk

A checkpoint: from the call to its return, with the tensors written, read back and compared, their checksums, every
file and folder flushed (fsync), the rename, and the oldest checkpoint removed. Going on: from the start of the process
`lorikeet train` to the beginning, and to the end, of its first step, behind a checkpoint. The first start of all, which
fills the system's file cache and compiles kernels, is not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import machine
import stoppable
import torch
from stoppable import links

from lorikeet import api, config
from lorikeet.api.resuming import as_begun
from lorikeet.base.amounts import mib
from lorikeet.base.files import write_file
from lorikeet.base.machine import folder_bytes
from lorikeet.train import loop
from lorikeet.train.metrics import Metrics

STOPPED = 3  # the exit code


def arguments() -> argparse.Namespace:
    parser = stoppable.parser(__doc__)
    parser.add_argument("--checkpoints", type=int, default=8, help="how many are written and timed, at least 2")
    parser.add_argument("--starts", type=int, default=3, help="how often a run is gone on with and timed")
    parser.add_argument("--folder", type=Path, default=Path(), help="a folder on the disk to measure; default: here")
    return parser.parse_args()


def saved(recipe: config.Recipe) -> list[float]:
    """Seconds of each checkpoint of a run that writes one behind every step; the first is left out."""
    took, save = [], loop.save_checkpoint

    def timed(*given: Any, **said: Any) -> Path:
        began = time.perf_counter()
        folder = save(*given, **said)
        took.append(time.perf_counter() - began)
        return folder

    loop.save_checkpoint = timed
    try:
        api.train(recipe)
    finally:
        loop.save_checkpoint = save
    return took[1:]


def gone_on(recipe: config.Recipe, run: Path, step: int) -> tuple[float, float]:
    """Seconds until the step behind `step` begins, and until its end; the run is stopped there."""
    began = time.monotonic()
    process = stoppable.start(recipe, run, f"--stop-after={step + 1}")
    while process.poll() is None and max(links(run), default=0) <= step:
        time.sleep(0.005)
    done = time.monotonic() - began
    if process.wait() != STOPPED:
        sys.exit(f"{run} failed:\n{run.with_suffix('.log').read_text()[-2000:]}")
    rows = Metrics(run / "metrics.jsonl").rows()
    took = next(row["seconds"] for row in rows if row.get("kind") == "train" and row["step"] == step + 1)
    return done - took, done


def said(what: str, seconds: list[float]) -> None:
    print(f"{what}: {median(seconds):.2f} s ({', '.join(f'{one:.2f}' for one in seconds)})", flush=True)


def main() -> int:
    asked = arguments()
    steps = max(asked.checkpoints, 2, asked.starts + 3)
    work = tempfile.TemporaryDirectory(prefix="checkpoint-time-", dir=asked.folder)
    with machine.others() as others, work as temporary:
        folder = Path(temporary).resolve()
        train = {"max_steps": steps, "save_steps": 1, "examples_per_step": 2}
        recipe = stoppable.recipe_of(asked, folder, train, notes=100, validation=4)
        checkpoints = saved(recipe)
        size = folder_bytes(folder / "whole" / f"checkpoint-{steps}")
        (begun,) = stoppable.starts(folder / "whole")
        recipe, run = as_begun(recipe, begun["identity"]), folder / "stopped"
        gone_on(recipe, run, 0)
        times = [gone_on(recipe, run, step) for step in range(1, asked.starts + 1)]
    begins, ends = ([round(one[i], 3) for one in times] for i in (0, 1))
    said(f"a checkpoint, {mib(size)}", checkpoints)
    said("from the start of the process to the first step", begins)
    said("to its end", ends)
    if others.share is not None:
        print(f"other processes took {others.share:.0%} of the processor meanwhile")
    if asked.json:
        made = {
            **stoppable.asked_for(asked), "threads": torch.get_num_threads(), "checkpoint_bytes": size,
            "checkpoint_seconds": checkpoints, "to_first_step_seconds": begins, "to_its_end_seconds": ends,
            "others_during": others.share,
        }  # fmt: skip
        write_file(asked.json, json.dumps(made, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
