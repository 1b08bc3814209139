"""A process of its own whose memory really ends: `python -m train.memory_child FOLDER` prints what came of it.

In turn limits.memory, a container's files (made in FOLDER), and the system's RLIMIT_AS leave room for half of a row;
then the row is computed whole, for comparison. The last case is one conversation, which cannot be split.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorikeet.adapters.lora import Lora
from lorikeet.base.heap import give_back
from lorikeet.base.nouns import Batch
from lorikeet.data.pack import pack_row, plan_rows
from lorikeet.train.evaluate import evaluate
from lorikeet.train.guard import Guard
from lorikeet.train.limits import Budget, LimitOptions
from lorikeet.train.memory_ceiling import Ceiling
from lorikeet.train.metrics import Metrics, peak_rss_bytes
from lorikeet.train.optim import Stepper
from lorikeet.train.options import TrainOptions
from lorikeet.train.out_of_memory import OutOfMemory
from lorikeet.train.run import Progress, Run
from parity import tiny

ROOM = 40 << 20  # the whole row takes about twice as much
LITTLE = 8 << 20  # besides what is free already in the heap
CONVERSATIONS, LENGTH = 40, 100
LONG = 3 * CONVERSATIONS * LENGTH  # its row does not fit into the addresses that the whole row has left free
TREE = {  # of a container that has ROOM left, but for the margin that is kept
    "proc/self/cgroup": "0::/\n",
    "proc/meminfo": "MemTotal: 99999999 kB\nMemAvailable: 99999999 kB\n",
    "sys/fs/cgroup/memory.current": f"{1 << 30}\n",
    "sys/fs/cgroup/memory.max": f"{int(((1 << 30) + ROOM) / 0.96)}\n",
}


def row(count: int, length: int) -> Batch:
    rng = np.random.default_rng(0)
    shared = tiny.random_tokens(rng, length // 4)
    found = [tiny.example(shared + tiny.random_tokens(rng, length - len(shared))) for _ in range(count)]
    (packed,) = [pack_row(one) for one in plan_rows(found, row_tokens=10**6)]
    return packed


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def lift() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Case:
    """A network that has made a small step, so that what stays for ever is there."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.model = tiny.decoder(
            dtype=torch.float32, width=128, heads=4, kv_heads=4, head_dim=32, layers=4,
            max_position=LONG,
        )  # fmt: skip
        adapter = Lora(r=4)
        adapter.attach(self.model, seed=0)
        self.parameters = adapter.parameters(self.model)
        self.options = TrainOptions(optim="sgd", max_grad_norm=0)
        self.stepper, self.metrics = Stepper(self.parameters, self.options), Metrics(folder / "metrics.jsonl")
        self.saved: list[str] = []
        self.computed(self.guard(), row(2, LENGTH))
        give_back()

    def guard(self, **limits: Any) -> Guard:
        run = Run(self.folder, self.model, self.parameters, lambda _: [], 1, lambda _: None)
        run.budget = Budget(LimitOptions(**limits))
        return Guard(run, self.options, self.stepper, self.metrics, Progress())

    def computed(self, guard: Guard, batch: Batch) -> dict[str, Any]:
        """The step with `batch`, whose gradient is kept aside."""
        before = status("VmRSS")
        result = guard.step([batch], rate=0.0, seed=0, save=lambda: self.saved.append("saved"))
        self.gradient = torch.cat(
            [one.grad.flatten().clone() for one in self.parameters.values() if one.grad is not None]
        )
        return {
            "loss": result.loss,
            "splits": guard.splits,
            "by": guard.ceiling.by,
            "grown": peak_rss_bytes() - before,
            "refused_now": resource.getrlimit(resource.RLIMIT_DATA)[0],
        }


def main(folder: Path) -> dict[str, Any]:
    case, batch = Case(folder), row(CONVERSATIONS, LENGTH)
    found, gradients = {}, {}
    for way in ("limit", "container", "address space", "whole"):
        guard = case.guard(**({"memory": status("VmRSS") + ROOM} if way == "limit" else {}))
        if way == "container":
            for name, text in TREE.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(text)
            guard.ceiling = Ceiling(case.model.device, root=folder)
        if way == "address space":
            resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + LITTLE, resource.RLIM_INFINITY))
        found[way] = case.computed(guard, batch)
        lift()
        gradients[way] = case.gradient
        case.stepper.clear()
        give_back()
    for way, gradient in gradients.items():
        found[way]["difference"] = float((gradient - gradients["whole"]).norm() / gradients["whole"].norm())
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + LITTLE, resource.RLIM_INFINITY))
    try:
        case.computed(case.guard(), row(1, LONG))
        error = ""
    except OutOfMemory as told:
        error = told.message()
    lift()
    held_out = row(100, 4 * LENGTH)
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + LITTLE, resource.RLIM_INFINITY))
    evaluation = evaluate(case.model, [held_out]).as_row()
    lift()
    evaluations = [evaluation, evaluate(case.model, [held_out]).as_row()]
    splits = [one for one in case.metrics.rows() if one["kind"] == "split"]
    return found | {"error": error, "saved": case.saved, "rows": splits, "room": ROOM, "evaluations": evaluations}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(Path(sys.argv[1]))))
