"""The verb verify resume: a recipe's first steps twice, once in one go and once killed and gone on with.

Both are real processes, as a person would start them, in a temporary folder; the kill is SIGKILL at a random moment.
The recipe is the person's own, with its schedule and its data; it only ends early, saves often, and answers nothing.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorikeet import config
from lorikeet.api.base import prepare, refuse_quant
from lorikeet.api.continuing import with_parent
from lorikeet.api.resuming import as_begun
from lorikeet.api.rows import run_steps
from lorikeet.base.errors import CheckFailed, RecipeError
from lorikeet.base.files import check_writable, write_file
from lorikeet.base.log import note
from lorikeet.config import Recipe
from lorikeet.train.best import BestOptions
from lorikeet.train.chain import KIND, START
from lorikeet.train.evaluate import EvaluateOptions
from lorikeet.train.limits import LimitOptions
from lorikeet.train.metrics import Metrics
from lorikeet.verify import resume as check

CERTIFICATE = "resume_certificate.json"
SAVE_EVERY = 2
FEW = 64  # conversations to validate with on the way
_TRIES = 5  # a child may be done before it is killed
_STOPPED = 3  # the exit code


def verify_resume(
    recipe: Recipe, *, output: Path, steps: int = 5, kills: int = 1, seed: int | None = None
) -> dict[str, Any]:
    """Run `steps` steps of `recipe` without and with `kills` interruptions and compare. Writes the certificate to
    `output` and returns it, with the lines of its table under "table"."""
    check_writable(output, CERTIFICATE)
    started, seed = time.time(), random.SystemRandom().randrange(1 << 32) if seed is None else seed
    config.check_effects(recipe)
    folder = Path(tempfile.mkdtemp(prefix="lorikeet-resume-"))
    try:
        short, steps = _shortened(recipe, steps)
        whole, interrupted = folder / "whole", folder / "interrupted"
        note(f"{steps} steps in one go")
        _finish(_start(short, whole, steps), whole)
        identity, chance = _starts(whole)[-1]["identity"], random.Random(seed)
        short = as_begun(short, identity)
        killed: list[dict[str, Any]] = []
        for number in range(kills):
            killed.append(_kill(short, interrupted, steps, chance, last=killed))
            note(f"kill {number + 1} of {kills}: behind step {killed[-1]['behind_step']}")
        note("going on to the end")
        _finish(_start(short, interrupted, steps), interrupted)
        _went_on(killed, _starts(interrupted))
        rows = check.compare(whole, interrupted, steps)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    broken = [row.what for row in rows if row.difference is not None]
    made = _certificate(recipe, identity, rows, broken) | {
        "steps": steps,
        "kills": killed,
        "seed": seed,
        "seconds": time.time() - started,
    }
    write_file(output, json.dumps(made, indent=2) + "\n")
    return made | {"table": check.table(rows, killed), "certificate": str(output)}


def refuse_differing(certificate: dict[str, Any]) -> None:
    """Raise CheckFailed, which names what differs, for a certificate that did not pass."""
    if not certificate["passed"]:
        raise CheckFailed(
            "a run that was killed and gone on with did not come to what the uninterrupted one came to",
            given=", ".join(certificate["broken"]),
            allowed="the same in every bit",
            try_=f"model.kernels=eager, to see whether the kernels are at fault; {certificate['certificate']} has more",
        )


def _shortened(recipe: Recipe, steps: int) -> tuple[Recipe, int]:
    """The recipe as it is run here, and how many of its steps. Reads the data, which prepares it for the children."""
    ready, _ = with_parent(recipe)
    ready, base, _, prepared = prepare(ready)
    refuse_quant(ready, base.checkpoint)
    all_steps = run_steps(ready, prepared)
    if all_steps < SAVE_EVERY + 2:
        raise RecipeError(
            "a run of so few steps has no place to be interrupted in",
            given=f"{all_steps} steps",
            allowed=f"at least {SAVE_EVERY + 2}",
            try_="more data, or train.max_steps",
        )
    few = prepared.validation is not None and len(prepared.validation) <= FEW
    train: dict[str, Any] = BestOptions().model_dump()  # nothing that ends it before its step
    train |= {"save_steps": SAVE_EVERY, "save_total_limit": 2, "logging_steps": 1, "report_to": []}
    train["eval_steps"] = SAVE_EVERY if few else None
    parts = {
        "train": recipe.train.model_copy(update=train),
        "evaluate": EvaluateOptions(before=few, samples=0),
        "limits": LimitOptions(memory=recipe.limits.memory),
    }
    return recipe.model_copy(update=parts), min(steps, all_steps - 1)


def _start(recipe: Recipe, run: Path, steps: int) -> subprocess.Popen[bytes]:
    """A process that trains into `run` and stops behind step `steps`, as a person would start it."""
    file = run.with_suffix(".yaml")
    config.save(recipe.model_copy(update={"output_dir": run}), file)
    command = [sys.executable, "-m", "lorikeet.cli.main", "train", str(file), f"--stop-after={steps}"]
    with run.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment())


def _environment() -> dict[str, str]:
    """Ours, and the children find the same Lorikeet, wherever we were started from."""
    here = str(Path(__file__).resolve().parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}


def _finish(process: subprocess.Popen[bytes], run: Path) -> None:
    with _ended(process):
        code = process.wait()
    if code != _STOPPED:
        lines = run.with_suffix(".log").read_text("utf-8", errors="replace").strip().splitlines()
        raise CheckFailed("the recipe's own run failed", given=" | ".join(lines[-4:]), try_="lorikeet train")


def _kill(recipe: Recipe, run: Path, steps: int, chance: random.Random, last: list[dict[str, Any]]) -> dict[str, Any]:
    """Start the run, or go on with it, and end it with SIGKILL at a random moment behind a step it has not yet done."""
    done = _steps(run)
    for _ in range(_TRIES):
        # two steps before the end at the latest: what comes is quick where the model is small
        at, process = chance.randint(min(done + 1, steps - 2), steps - 2), _start(recipe, run, steps)
        with _ended(process):
            while process.poll() is None and _steps(run) < at:
                time.sleep(0.01)
            time.sleep(_pause(run, chance))
        code = process.wait()
        if code == -signal.SIGKILL:
            return {"behind_step": _steps(run), "from_step": None}
        if code != _STOPPED:
            _finish(process, run)
        shutil.rmtree(run)  # it was done before we came: from the beginning, with another throw of the dice
        done = 0
        last.clear()
    raise CheckFailed("the run could not be interrupted in time", try_="--steps with a larger number")


def _pause(run: Path, chance: random.Random) -> float:
    """Seconds to a random moment within the next step, if it takes as long as the last one did."""
    took = [row["seconds"] for row in Metrics(run / "metrics.jsonl").rows() if row.get("kind") == "train"]
    return chance.random() * min(0.8 * (took[-1] if took else 0.0), 30.0)


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """However the block ends, the process is killed if it is still there."""
    try:
        yield
    finally:
        process.send_signal(signal.SIGKILL)


def _steps(run: Path) -> int:
    """How far the run's record reaches."""
    steps = [row["step"] for row in Metrics(run / "metrics.jsonl").rows() if row.get("kind") == KIND]
    return max(steps, default=0)


def _went_on(killed: list[dict[str, Any]], begun: list[dict[str, Any]]) -> None:
    """Note from which step the run went on behind each kill. A run that was killed before its first checkpoint begins
    again, and its record then knows of no earlier beginning."""
    steps = [0] * (len(killed) + 1 - len(begun)) + [one["step"] for one in begun]
    for kill, step in zip(killed, steps[-len(killed) :]):
        kill["from_step"] = step


def _starts(run: Path) -> list[dict[str, Any]]:
    return [row for row in Metrics(run / "metrics.jsonl").rows() if row.get("kind") == START]


def _certificate(recipe: Recipe, identity: dict[str, Any], rows: list[check.Row], broken: list[str]) -> dict[str, Any]:
    return {
        "certificate_version": 1,
        "passed": not broken,
        "broken": broken,
        "model": recipe.model.path,
        "base_fingerprint": identity["base_fingerprint"],
        "quant": identity["quant"],
        "adapter": identity["adapter"],
        "data": {"sha256": identity["data"]},
        "rows": [{**vars(row), "verdict": row.verdict} for row in rows],
        "computed": {name: identity.get(name) for name in ("dtype", "device", "threads", "kernels", "cpu", "gpu")},
        "versions": {
            "lorikeet": version("lorikeet-llm"),
            "torch": identity["torch"],
            "python": platform.python_version(),
        },
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
