"""What a run may take: time, memory, disk, tokens. A run that meets a limit ends well: a checkpoint to go on from, the
last evaluation, an adapter that loads, and a line that says which limit it was.

Time is foreseen: before every step it is asked whether it would leave enough for what comes at the end, going by how
long each of these took in this run so far. A run that goes on knows from its record how long its steps took.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import Field, field_validator
from torch import nn

from lorikeet.base import amounts
from lorikeet.base.amounts import mib
from lorikeet.base.errors import Interrupted, OutputError, RecipeError
from lorikeet.base.files import need_space
from lorikeet.base.machine import folder_bytes
from lorikeet.base.nouns import Batch
from lorikeet.base.options import Options
from lorikeet.train.memory import memory_now
from lorikeet.train.optimizers._contract import Optimizer
from lorikeet.train.stopping import Stop

READ: dict[str, tuple[Callable[[Any], float | None], str]] = {
    "time": (amounts.seconds, "a duration such as 2h30m, 45min or 90s"),
    "memory": (amounts.size_bytes, "a size such as 8GiB or 500MB"),
    "disk": (amounts.size_bytes, "a size such as 2GiB or 500MB"),
    "tokens": (amounts.count, "a number such as 2000000, 500k or 10M"),
}
STEPS = 20  # of which the longest is what the next is expected to take
BYTES_A_SECOND = 50e6  # of writing a checkpoint with its checksums, before one was written; slow disks manage that
BESIDE = 1 << 20  # what stands in a checkpoint and in the run's folder besides tensors


class LimitOptions(Options):
    """The recipe's `limits` section. None of them changes what is computed, so a stopped run may go on with others."""

    time: str | float | None = Field(
        None,
        description="Wall-clock time of one start, from the command to its last file: 2h30m. The run stops early "
        "enough to write all it has; the same command goes on for as long again.",
    )
    memory: str | int | None = Field(
        None,
        description="Most memory: of the process on a CPU, of the device on CUDA: 8GiB. Rows that do not fit are "
        "split.",
    )
    disk: str | int | None = Field(
        None,
        description="Most that the run's folder may hold: 2GiB. Checked before the start, with all checkpoints that "
        "save_total_limit keeps.",
    )
    tokens: str | int | None = Field(None, description="Tokens to train on in the whole run: 10M.")

    @field_validator("time", "memory", "disk", "tokens")
    @classmethod
    def _readable(cls, value: str | float | None, info: Any) -> str | float | None:
        read, wanted = READ[info.field_name]
        if value is None:
            return None
        found = read(value)
        if not found or found <= 0:
            raise ValueError(f"'{str(value)[:40]}' is no amount: {wanted}")
        return value

    def amount(self, name: str) -> float | None:
        """A limit as a number: seconds, bytes or tokens."""
        value = {"time": self.time, "memory": self.memory, "disk": self.disk, "tokens": self.tokens}[name]
        return None if value is None else READ[name][0](value)


class Planned(Protocol):
    """What is known of the steps of a run."""

    steps: int
    validation: Sequence[Batch] | None

    @property
    def batches(self) -> Callable[[int], Sequence[Batch]]: ...

    @property
    def sample(self) -> Callable[[int], None] | None: ...


class Done(Protocol):
    """What is done of them."""

    step: int
    tokens: int
    seconds: float


class Budget:
    """The limits of a run that goes. `started`: when, by time.monotonic()."""

    def __init__(self, limits: LimitOptions | None = None, *, started: float | None = None):
        self.limits = limits or LimitOptions()
        self.started = time.monotonic() if started is None else started
        self.ended_by: str | None = None  # time, tokens or memory
        self._took: dict[str, list[float]] = {}
        self._expected: dict[str, float] = {}

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Measure what the block takes, under a name: step, evaluate, save, samples."""
        start = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - start
            known = [*self._took.get(what, []), took]
            self._took[what] = known[-STEPS:] if what == "step" else [max(known)]

    def expect(self, what: str, seconds: float) -> None:
        """What something is thought to take that was not measured yet."""
        self._expected[what] = seconds

    def remember(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Expect a step to take what most of the last ones in the run's record took: not the longest, because one that
        slept through a night would keep every later start from making another."""
        took = sorted(row["seconds"] for row in rows[-STEPS:] if row.get("seconds") is not None)
        if took:
            self.expect("step", took[3 * len(took) // 4])

    def seconds(self, what: str) -> float:
        """What it will take."""
        return max(self._took.get(what, []), default=self._expected.get(what, 0.0))

    @property
    def left(self) -> float:
        """Seconds until the time is up; infinite without a limit."""
        limit = self.limits.amount("time")
        return math.inf if limit is None else self.started + limit - time.monotonic()

    def enough_for(self, *what: str) -> bool:
        """Whether the time that is left suffices for all of these."""
        return self.left >= 1.1 * sum(map(self.seconds, what))

    def look(self, stop: Stop, run: Planned, done: Done) -> None:
        """Ask to stop where another step would break a limit."""
        if stop.now or done.step >= run.steps:
            return
        most = self.limits.amount("tokens")
        if most is not None:
            next_ = sum(batch.source_tokens for batch in run.batches(done.step))
            self.ended_by = "tokens" if done.tokens + next_ > most else None
        if run.validation and done.seconds and "evaluate" not in self._expected:  # a pass without the way back
            held_out = sum(batch.source_tokens for batch in run.validation)
            self.expect("evaluate", done.seconds / max(1, done.tokens) * held_out)
        # behind the step an evaluation, samples and a checkpoint may be due, and then comes the end with each of them
        behind = ("step", "evaluate", "save", *(["samples"] if run.sample else []))
        if not self.ended_by and not self.enough_for(*behind, "evaluate", "save", "save", "samples"):
            self.ended_by = "time"
        if self.ended_by:
            stop.ask(f"limits.{self.ended_by}")

    def line(self, folder: Path) -> tuple[str, str]:
        """(which limit ended the run, how to go on)."""
        name = self.ended_by or ""
        limit = getattr(self.limits, name)
        more = {"time": "the same command goes on for as long again, or with limits.time=null to the end"}
        if "step" not in self._took and "step" in self._expected:  # it would come no farther
            more = {"time": f"a longer limits.time: a step took {round(self.seconds('step'), 1):g} s before"}
        other = f"lorikeet train {folder / 'recipe.yaml'} limits.{name}=null goes on without it, or with a larger one"
        return f"limits.{name} ({limit})", more.get(name, other)

    def interrupted(self, folder: Path, step: int, steps: int) -> Interrupted:
        """The end of a run that a limit stopped."""
        name, remedy = self.line(folder)
        saved = "nothing is trained yet" if step == 0 else "everything is saved, and the adapter is usable"
        return Interrupted(f"{name} ended the run after step {step} of {steps}; {saved}", try_=remedy)


def checkpoint_bytes(parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> int:
    """What a checkpoint takes: what trains, and the optimizer's state of it."""
    trained = sum(parameter.nbytes for parameter in parameters.values())
    states = (optimizer.begin(parameter.detach().to("meta")) for parameter in parameters.values())
    return trained + sum(value.nbytes for state in states for value in state.values()) + BESIDE


def check_memory(limits: LimitOptions, device: torch.device) -> None:
    """Raise RecipeError for a limits.memory below what is held before the first step: by the process, or on CUDA by
    tensors."""
    most = limits.amount("memory")
    if most is not None and device.type != "cuda" and not sys.platform.startswith("linux"):
        raise RecipeError("limits.memory: has no effect here", given=limits.memory, allowed="Linux, or a CUDA device")
    held = torch.cuda.memory_allocated(device) if device.type == "cuda" else memory_now(device).get("rss_bytes", 0)
    if most is not None and most < held:
        raise RecipeError(
            "limits.memory: less than the model takes before the first step",
            given=limits.memory,
            allowed=f"more than {mib(held)}",
            try_="a larger limit, a smaller model, or quant.kind=nf4",
        )


def reserve_disk(folder: Path, limits: LimitOptions, each: int, keep: int) -> None:
    """Before the start: that the disk has room for all checkpoints of `each` bytes that are kept, the one that is
    written beside them, and the adapter; and that these keep to limits.disk. Raises OutputError."""
    whole = each * (keep + 2)
    most, there = limits.amount("disk"), folder_bytes(folder)
    if most is not None and whole > most:
        raise OutputError(
            f"limits.disk: too little for {keep} checkpoints, the next one and the adapter",
            given=limits.disk,
            allowed=f"at least {mib(whole + BESIDE)}, {mib(each)} for each",
            try_=f"limits.disk={whole // 2**20 + 2}MiB"
            + ("" if keep == 1 else f", or train.save_total_limit={keep - 1}"),
        )
    need_space(folder, max(0, whole - there), f"{keep + 1} checkpoints and the adapter, {mib(each)} each")
