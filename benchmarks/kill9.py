"""A run that is killed again and again, and gone on with each time, against the same run that nobody touched.

    python benchmarks/kill9.py --kills 100                              SmolLM2, LoRA in bfloat16
    python benchmarks/kill9.py --kills 20 --quant nf4 --adapter dora    any kind with any kind

Both are the command `lorikeet train`, as a person would give it. Each kill is SIGKILL at a random moment: most in or
between two steps, some while a checkpoint is being written, some while the process is still starting. Nothing is
cleaned up in between. At the end the adapter, the optimizer, every loss and everything else that the record holds has
to be the same in every bit, and the folder has to hold the same files. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import stoppable
from stoppable import inode, links, start, starts

from lorikeet import config
from lorikeet.api.resuming import as_begun
from lorikeet.base.files import write_file
from lorikeet.train.metrics import Metrics

MOMENTS = {"step": 0.7, "save": 0.15, "start": 0.15}  # of kills, by where they are meant to fall


def arguments() -> argparse.Namespace:
    parser = stoppable.parser(__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, help="of the run; by default one for each kill, and ten more")
    parser.add_argument("--save-steps", type=int, default=5)
    parser.add_argument("--examples-per-step", type=int, default=2, help="few, so that a step takes a second")
    parser.add_argument("--data", type=Path, help="training file; default: generated notes")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="keep both runs here; by default they are removed")
    return parser.parse_args()


def recipe_of(asked: argparse.Namespace, folder: Path, steps: int) -> config.Recipe:
    """What is trained: dropout, evaluation and accumulation are in it."""
    train = {
        "max_steps": steps, "save_steps": asked.save_steps, "examples_per_step": asked.examples_per_step,
        "eval_steps": 4 * asked.save_steps, "warmup_steps": 2,
        "learning_rate": 1e-5 if asked.adapter == "full" else 2e-4,
    }  # fmt: skip
    return stoppable.recipe_of(asked, folder, train, notes=400, validation=16, data=asked.data, dropout=0.05)


def finish(recipe: config.Recipe, run: Path) -> float:
    """Run to the end; seconds."""
    began = time.monotonic()
    if start(recipe, run).wait() != 0:
        sys.exit(f"{run} failed:\n{run.with_suffix('.log').read_text()[-2000:]}")
    return time.monotonic() - began


def saving(run: Path) -> bool:
    return run.is_dir() and any(path.name.startswith(".checkpoint-") for path in run.iterdir())


def kill(process: subprocess.Popen[bytes], run: Path, moment: str, aim: int, chance: random.Random) -> int | None:
    """Wait for the moment behind step `aim` and kill. The exit code where the run was quicker, else None."""
    began, before = time.monotonic(), inode(run)
    if moment == "start":
        time.sleep(chance.random() * 6)
    else:
        while process.poll() is None and inode(run) == before:  # going on writes the record anew
            time.sleep(0.01)
        while process.poll() is None and max(links(run), default=0) < aim:
            time.sleep(0.01)
        if moment == "save":
            while process.poll() is None and not saving(run):
                time.sleep(0.001)
            time.sleep(chance.random() * 0.25)
        else:
            time.sleep(chance.random() * min(2.0, (time.monotonic() - began) / 4))
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    return None if code == -signal.SIGKILL else code


def torment(recipe: config.Recipe, run: Path, asked: argparse.Namespace, steps: int) -> list[dict[str, Any]]:
    """The kills, a line for each."""
    chance, found = random.Random(asked.seed), []
    for number in range(1, asked.kills + 1):
        moment = chance.choices(list(MOMENTS), MOMENTS.values())[0]
        aim = max(1, min(steps - 2, number * (steps - 2) // asked.kills))
        code = kill(start(recipe, run), run, moment, aim, chance)
        if code is not None:
            print(f"kill {number}: the run ended by itself before it came, with code {code}", flush=True)
            break
        half = sorted(path.name for path in run.glob(".checkpoint-*")) if run.is_dir() else []
        found.append({"number": number, "moment": moment, "behind_step": max(links(run), default=0), "half": len(half)})
        left = f", leaves {half[0]}" if half else ""
        print(f"kill {number} of {asked.kills}: {moment}, behind step {found[-1]['behind_step']}{left}", flush=True)
    return found


def differences(whole: Path, killed: Path, steps: int) -> list[str]:
    """What is not the same; empty where everything is."""
    found = stoppable.differences(whole, killed, steps)
    sides = [{path.relative_to(run).as_posix() for path in run.rglob("*")} for run in (whole, killed)]
    found += [f"only in one folder: {name}" for name in sorted(sides[0] ^ sides[1])]
    told = [row for row in Metrics(killed / "metrics.jsonl").rows() if row.get("kind") == "differs"]
    return found + [f"the run itself says so: {row}" for row in told]


def main() -> int:
    asked = arguments()
    steps = asked.steps or asked.kills + 10
    with tempfile.TemporaryDirectory(prefix="kill9-") as temporary:
        folder = (asked.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        recipe, whole, killed = recipe_of(asked, folder, steps), folder / "whole", folder / "killed"
        seconds = finish(recipe, whole)
        print(f"uninterrupted: {steps} steps in {seconds:.0f} s", flush=True)
        recipe = as_begun(recipe, starts(whole)[-1]["identity"])
        began = time.monotonic()
        kills = torment(recipe, killed, asked, steps)
        if not (killed / "summary.json").exists():  # the last kill may come behind the last write
            finish(recipe, killed)
        took, again = time.monotonic() - began, starts(killed)
        wrong = differences(whole, killed, steps)
    made = {
        **stoppable.asked_for(asked), "steps": steps,
        "kills": len(kills), "moments": dict(Counter(one["moment"] for one in kills)),
        "half_written_checkpoints_left": sum(one["half"] > 0 for one in kills),
        "went_on": len(again) - 1, "seconds_uninterrupted": seconds, "seconds_killed": took,
        "differences": wrong, "each": kills,
    }  # fmt: skip
    if asked.json:
        write_file(asked.json, json.dumps(made, indent=2) + "\n")
    said = "bit for bit the same" if not wrong else "DIFFERENT:\n  " + "\n  ".join(wrong)
    print(f"{len(kills)} kills {made['moments']}, {took:.0f} s; {said}")
    return 1 if wrong or len(kills) < asked.kills else 0


if __name__ == "__main__":
    sys.exit(main())
