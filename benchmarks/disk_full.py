"""A disk that fills up in the middle of a run, at many different writes, and the same command once there is room again.

    python benchmarks/disk_full.py --writes 30

The run lies on a small file system of its own (a tmpfs in a user namespace, which needs no privileges: `unshare -rm`).
While it trains, a file takes all room but a few bytes; how many is another number each time, from none to more than a
checkpoint has. So it is a row of metrics that does not fit, or the adapter of a checkpoint, or its optimizer, its list
of checksums, a later checkpoint, the finished adapter, the summary. Each run has to end by itself with exit code 3 and
a line that says why, leave nothing half-written, and go on to the same bits as the run that always had room.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import stoppable
from stoppable import inode, links, starts

from lorikeet import config
from lorikeet.api.resuming import as_begun
from lorikeet.base.files import write_file
from lorikeet.train.state import checkpoints, intact

ROOM = 300 << 20  # a run refuses to begin with less than 256 MiB
INSIDE = "LORIKEET_DISK_FULL_INSIDE"


def arguments() -> argparse.Namespace:
    parser = stoppable.parser(__doc__)
    parser.add_argument("--writes", type=int, default=30, help="how often the disk is full, each in a run of its own")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of moments and sizes")
    return parser.parse_args()


def recipe_of(asked: argparse.Namespace, folder: Path) -> config.Recipe:
    """What is trained: a checkpoint at every second step, a validation, samples."""
    train = {"max_steps": asked.steps, "save_steps": 2, "save_total_limit": 3, "examples_per_step": 2, "eval_steps": 4}
    return stoppable.recipe_of(asked, folder, train, notes=100, validation=4, samples=1)


def start(recipe: config.Recipe, run: Path, file: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE  # a file of what it says would lie on the disk that is full
    return stoppable.start(recipe, run, file=file, stdout=pipe, stderr=pipe, text=True)


def fill(disk: Path, left: int) -> None:
    """Take all room of the file system but `left` bytes, in whole pages."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        for size in (1 << 24, 1 << 16, 4096):  # the run writes beside us, so room is taken until there is none
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
        file.truncate(max(0, file.tell() - left))


def one(recipe: config.Recipe, disk: Path, whole: Path, steps: int, at: int, left: int, work: Path) -> dict[str, Any]:
    """One run on the small disk, which is full behind step `at` but for `left` bytes."""
    run, file = disk / "run", work / "recipe.yaml"
    process, before = start(recipe, run, file), inode(run)
    while process.poll() is None and (inode(run) == before or max(links(run), default=0) < at):
        time.sleep(0.002)
    fill(disk, left)
    said = process.communicate()[1]
    line = next((text for text in said.splitlines() if re.match(r"[A-Z]\w+: ", text)), "")
    half = [str(path.relative_to(run)) for path in run.rglob(".*") if path.name != ".lock"]
    damaged = [step for step in checkpoints(run) if not intact(run / f"checkpoint-{step}")]
    behind, kept = max(links(run), default=0), checkpoints(run)
    found = {"full_behind_step": at, "left": left, "code": process.returncode, "said": line, "reached": behind,
             "checkpoints": kept, "half_written": half, "damaged": damaged}  # fmt: skip
    (disk / "ballast").unlink()
    again = start(recipe, run, file)
    problem = again.communicate()[1][-400:]
    found["code_after"] = again.returncode
    found["differences"] = [problem] if again.returncode else stoppable.differences(whole, run, steps)
    shutil.rmtree(run)
    return found


def good(found: dict[str, Any]) -> bool:
    """The disk was full, it was said, nothing half was left, and in the end everything is the same."""
    left = found["half_written"] or found["damaged"] or found["differences"]
    return found["code"] == 3 and found["said"].startswith("DiskFull") and not left and found["code_after"] == 0


def main() -> int:
    asked = arguments()
    if INSIDE not in os.environ:
        command = ["unshare", "-rm", sys.executable, *sys.argv]
        return subprocess.run(command, env=os.environ | {INSIDE: "1"}, check=False).returncode
    with tempfile.TemporaryDirectory(prefix="disk-full-") as temporary:
        folder = Path(temporary)
        disk, whole = folder / "disk", folder / "whole"
        disk.mkdir()
        recipe = recipe_of(asked, folder)
        if (first := start(recipe, whole, folder / "recipe.yaml")).wait() != 0:
            sys.exit(str(first.communicate()[1])[-2000:])
        recipe = as_begun(recipe, starts(whole)[-1]["identity"])
        size = sum(file.stat().st_size for file in (whole / f"checkpoint-{asked.steps}").iterdir())
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM + 6 * size}", "tmpfs", str(disk)], check=True)
        chance, each = random.Random(asked.seed), []
        for number in range(asked.writes):
            left = int(number / asked.writes * 1.3 * size)
            found: dict[str, Any] = {"code": 0}
            while found["code"] == 0:  # late in the run so much room may be enough for the rest
                at = chance.randrange(0, asked.steps)
                found = one(recipe, disk, whole, asked.steps, at, left, folder)
            each.append(found)
            verdict = "goes on to the same bits" if good(found) else f"WRONG {found}"
            print(f"{number + 1:>3}: full behind step {at} but for {left:,} bytes; exit code {found['code']}, "
                  f"checkpoints {found['checkpoints']}; {verdict}", flush=True)  # fmt: skip
        subprocess.run(["umount", "-l", str(disk)], check=True)
    passed = sum(map(good, each))
    print(f"{passed} of {len(each)} full disks survived")
    if asked.json:
        made = {**stoppable.asked_for(asked), "checkpoint_bytes": size, "writes": len(each),
                "survived": passed, "each": each}  # fmt: skip
        write_file(asked.json, json.dumps(made, indent=2) + "\n")
    return 0 if passed == len(each) else 1


if __name__ == "__main__":
    sys.exit(main())
