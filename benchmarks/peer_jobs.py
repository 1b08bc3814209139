"""Jobs for the runners, and running them: each in its tool's own environment, with a time limit, and remembered.

A job is a workload's first rows in the order in which Lorikeet trains them, as token ids with their trained spans, so
every tool computes the same conversations. What a run found, or the error it ended in, is appended to one JSON file
under a key of everything that decides it; asked again, the file answers.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import workloads
from machine import others
from peer_figures import Sizes
from workloads import Workload

import lorikeet
from lorikeet import api, config
from lorikeet.base.nouns import Example
from lorikeet.data.pack import order

RANK = 8
RUNNERS = Path(__file__).with_name("runners")
Setting = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """A tool: what pip installs, and which runner trains with it."""

    name: str
    requirements: tuple[str, ...]
    runner: str
    removed: tuple[str, ...] = ()  # PyPI's builds of these do not load beside a CPU build of PyTorch


PEERS = {
    one.name: one
    for one in (
        Peer("trl", ("trl==1.16.0", "peft==0.21.2"), "trl_run.py"),
        Peer("llamafactory", ("llamafactory==0.9.5",), "llamafactory_run.py", ("torchvision", "torchaudio")),
        Peer("ms-swift", ("ms-swift==4.6.0",), "swift_run.py"),
        Peer("litgpt", ("litgpt==0.5.13", "requests"), "litgpt_run.py"),
    )
}
LORIKEET = "lorikeet"


@dataclass(frozen=True)
class Size:
    """How much of a workload a run does; `rows_per_step` is the workload's own where it is 0."""

    warmup_steps: int
    steps: int
    rows_per_step: int = 0

    def rows(self, work: Workload) -> int:
        return (self.warmup_steps + self.steps) * (self.rows_per_step or work.examples_per_step)


SHORT = {"W1": Size(1, 1, 8), "W2": Size(1, 1, 2), "W3": Size(1, 1, 8), "W4": Size(1, 1, 1)}
FULL = {"W1": Size(1, 2), "W2": Size(1, 1, 2), "W3": Size(1, 2), "W4": Size(1, 3)}  # 64 rows or 4 steps at most


def candidates(peer: str, workload: str) -> list[Setting]:
    """The settings of the first round. Grouping is on where micro-batches have several rows: it only lowers padding;
    the first round's best is then tried without it, and with the other choices of `neighbours`."""
    largest = {"W1": 8, "W2": 2, "W3": 8, "W4": 1}[workload]
    sizes = [size for size in (1, 2, 4, 8) if size <= largest]
    if peer == "litgpt":
        return [{"micro_batch": size, "adapters": "bfloat16"} for size in sizes]
    base = {"checkpointing": False, "adapters": "float32"}
    found = [base | {"micro_batch": size, "grouped": size > 1} for size in sizes]
    if workload in ("W1", "W3") and peer in ("trl", "llamafactory"):  # ms-swift's packing needs flash attention
        found.append(base | {"micro_batch": 1, "grouped": False, "packing": 2048 if peer == "trl" else 2047})
    return found


def neighbours(peer: str, best: Setting) -> list[Setting]:
    """What differs from a setting in one choice."""
    found: list[Setting] = []
    if peer != "llamafactory":  # its pure_bf16 refuses a CPU
        found.append(best | {"adapters": "bfloat16" if best["adapters"] == "float32" else "float32"})
    if peer != "litgpt":
        found.append(best | {"checkpointing": not best["checkpointing"]})
        if best["grouped"]:
            found.append(best | {"grouped": False})
    return found


class Jobs:
    """Makes and runs the jobs of one source file; `results` is the JSON file that remembers."""

    def __init__(self, source: Path, folder: Path, venvs: Path, results: Path, *, threads: int, limit: float):
        self.source, self.folder, self.venvs, self.results = source, folder, venvs, results
        self.threads, self.limit = threads, limit
        self.peak: Callable[[], float] | None = None  # the best matmul now, timed before and after each run
        self.examples: dict[str, list[Example]] = {}

    def rows(self, work: Workload, count: int) -> list[Example]:
        """The first `count` conversations of epoch 0, as Lorikeet renders, cuts and orders them."""
        if work.name not in self.examples:
            run = config.parse(self._recipe(work, None))
            _, _, _, prepared = api.prepare(run)
            turns = order(len(prepared.train), run.train.seed, 0)
            self.examples[work.name] = [prepared.train[int(index)] for index in turns]
        return self.examples[work.name][:count]

    def _recipe(self, work: Workload, size: Size | None, **train: Any) -> dict[str, Any]:
        rows = self.folder / f"{work.name}.jsonl"
        if not rows.exists():
            workloads.write_rows(work, self.source, self.folder)
        model = workloads.model_folder(work, self.folder, self.source)
        if size is not None and size.rows_per_step:
            train["examples_per_step"] = size.rows_per_step
        kernels = train.pop("kernels", "auto")
        made = workloads.recipe(work, rows.resolve(), str(model.resolve()), threads=self.threads, **train)
        made["model"]["kernels"] = kernels
        return made

    def job(self, tool: str, work: Workload, size: Size, setting: Setting) -> dict[str, Any]:
        """What a runner reads."""
        rows = self.rows(work, size.rows(work))
        return {
            "workload": work.name, "setting": setting, "threads": self.threads, "max_length": work.max_length,
            "warmup_steps": size.warmup_steps, "steps": size.steps,
            "rows_per_step": size.rows_per_step or work.examples_per_step,
            "model": str(workloads.model_folder(work, self.folder, self.source).resolve()),
            "recipe": self._recipe(work, size, **(setting if tool == LORIKEET else {})),
            "rows": [{"tokens": row.tokens.tolist(), "trained": spans(row.weights)} for row in rows],
        }  # fmt: skip

    def sizes(self, work: Workload) -> Sizes:
        """Of the workload's model with LoRA of rank 8 on all linears."""
        base = api.open_base(config.parse(self._recipe(work, None)).model)
        shape = base.shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        linears = [(shape.width, queries), (shape.width, keys), (shape.width, keys), (queries, shape.width)]
        linears += [(shape.width, shape.ffn_width)] * 2 + [(shape.ffn_width, shape.width)]
        return Sizes(
            shape.layers, shape.width, shape.heads, shape.head_dim, shape.vocab_size,
            frozen=shape.layers * sum(inside * out for inside, out in linears),
            trained=shape.layers * sum(RANK * (inside + out) for inside, out in linears),
        )  # fmt: skip

    def forget_failures(self) -> None:
        """Runs that ended in an error are to run again."""
        if self.results.exists():
            write(self.results, {key: run for key, run in self.done().items() if "error" not in run})

    def done(self) -> dict[str, Any]:
        """Everything that was run before."""
        return json.loads(self.results.read_text()) if self.results.exists() else {}

    def run(self, tool: str, work: Workload, size: Size, setting: Setting, *, round_: str = "") -> dict[str, Any]:
        """The run's figures, from the file or measured now; an `error` where it ended in one."""
        key = key_of(tool, work, size, setting, self.threads, round_)
        if (found := self.done().get(key)) is not None:
            return found
        before = self.peak() if self.peak else None
        started = time.perf_counter()
        with others() as busy:
            found = self._measure(tool, self.job(tool, work, size, setting))
        found |= {"tool": tool, "workload": work.name, "setting": setting, "round": round_, "others_during": busy.share,
                  "size": vars(size), "whole_seconds": time.perf_counter() - started}  # fmt: skip
        first = size.warmup_steps * (size.rows_per_step or work.examples_per_step)
        timed = self.rows(work, size.rows(work))[first:]
        found |= {"tokens": sum(len(row.tokens) for row in timed), "rows": len(timed)}
        if before is not None and self.peak:  # the machine is not the same from one minute to the next
            found["matmul_peak"] = max(before, self.peak())
        if "error" not in found:
            found["tokens_per_second"] = found["tokens"] / found["seconds"]
        remember(self.results, key, found)
        return found

    def _measure(self, tool: str, job: dict[str, Any]) -> dict[str, Any]:
        folder = (self.folder / "jobs" / f"{tool}-{job['workload']}").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        job["folder"] = str(folder)
        (folder / "job.json").write_text(json.dumps(job))
        python = Path(sys.executable) if tool == LORIKEET else self.venvs.resolve() / tool / "bin" / "python"
        if not python.exists():
            return {"error": f"no environment {python.parent.parent}: python benchmarks/peers.py install {tool}"}
        runner = RUNNERS / ("lorikeet_run.py" if tool == LORIKEET else PEERS[tool].runner)
        return run_limited([str(python), str(runner), str(folder / "job.json")], folder / "log.txt", self.limit,
                           self.threads)  # fmt: skip


def code() -> str:
    """A short hash of Lorikeet's sources: after a change, runs of before are no answer."""
    digest, package = hashlib.sha256(), Path(lorikeet.__file__).parent
    for file in sorted(package.rglob("*")):
        if file.suffix in (".py", ".cpp", ".h"):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def spans(weights: np.ndarray) -> list[list[int]]:
    """[start, end) of each stretch of trained tokens."""
    return np.flatnonzero(np.diff(np.concatenate([[0], weights > 0, [0]]))).reshape(-1, 2).tolist()


def key_of(tool: str, work: Workload, size: Size, setting: Setting, threads: int, round_: str) -> str:
    """The name under which a run is remembered: readable, and a hash of all that decides it."""
    whole = json.dumps([tool, vars(work), vars(size), setting, threads, round_], sort_keys=True)
    return f"{tool} {work.name} {round_} {hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def remember(results: Path, key: str, found: dict[str, Any]) -> None:
    """Add a run to the file, which is never half-written."""
    write(results, (json.loads(results.read_text()) if results.exists() else {}) | {key: found})


def write(results: Path, runs: dict[str, Any]) -> None:
    """All runs, by their keys."""
    results.parent.mkdir(parents=True, exist_ok=True)
    fresh = results.with_suffix(".new")
    fresh.write_text(json.dumps(runs, indent=1) + "\n")
    fresh.replace(results)


def run_limited(command: list[str], log: Path, limit: float, threads: int) -> dict[str, Any]:
    """The RESULT line of a process, or {"error": the end of what it printed}; killed with its children after `limit`
    seconds."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
                    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "WANDB_DISABLED": "true",
                    "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=log.parent,
                                   start_new_session=True)  # fmt: skip
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = log.read_text(errors="replace").splitlines()
    for line in reversed(lines):
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    said = " | ".join([line for line in lines if line.strip()][-4:])[-400:]
    return {"error": f"longer than {limit:.0f} s" if code is None else f"exit code {code}: {said}"}
