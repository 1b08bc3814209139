"""A Lorikeet command with its memory and time written down, part by part.

    python benchmarks/watched.py NOTES.json [--stop] train recipe.yaml

runs `lorikeet train recipe.yaml` in this process. Parts: what comes before the weights, load, what comes between, each
step, each save, what comes after. Of each the peak of resident memory (Linux: the kernel's mark is set back where a
part begins), and of a step the seconds that went into dequantising, matmuls, the head and the rest. --stop asks the
run to stop after its first step, as Ctrl-C would.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

from lorikeet.base.files import write_file


@dataclass
class Part:
    """A stretch of the run. Bytes: resident at its end, and at most; `split` is of its seconds."""

    name: str
    seconds: float = 0.0
    bytes_before: int = 0
    bytes_after: int = 0
    file_bytes_after: int = 0  # of those, pages of mapped files: libraries, mostly
    peak_bytes: int = 0
    split: dict[str, float] = field(default_factory=dict)


class Watch:
    """The parts of this process so far. What is timed inside something timed counts for itself alone."""

    def __init__(self, first: str):
        self.parts: list[Part] = []
        self._split: dict[str, float] = {}
        self._inside: list[float] = []  # seconds of what was timed within each open call
        self._begin(first)

    def _begin(self, name: str) -> None:
        reset_peak()
        self._part, self._start = Part(name, bytes_before=status("VmRSS")), time.perf_counter()
        self._split = self._part.split

    def next(self, name: str) -> None:
        """The part ends, and the next begins."""
        self.end()
        self._begin(name)

    def end(self) -> None:
        part = self._part
        part.seconds = time.perf_counter() - self._start
        part.bytes_after, part.peak_bytes, part.file_bytes_after = status("VmRSS"), status("VmHWM"), status("RssFile")
        self.parts.append(part)

    def part(self, owner: Any, function: str, name: str, after: str, before: Callable[[], None] | None = None) -> None:
        """Calls of `owner.function` are parts called `name`; behind them begins one called `after`."""
        whole = getattr(owner, function)

        @wraps(whole)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.next(name)
            if before is not None:
                before()
            found = whole(*args, **kwargs)
            self.next(after)
            return found

        setattr(owner, function, watched)

    def time(self, owner: Any, function: str, name: Callable[[Any], str] | str) -> None:
        """Add the seconds of `owner.function`, less those of what is timed inside it, to `name` (of its first
        argument)."""
        whole = getattr(owner, function)

        @wraps(whole)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            start = time.perf_counter()
            try:
                return whole(*args, **kwargs)
            finally:
                taken = time.perf_counter() - start
                said = name if isinstance(name, str) else name(args[0])
                self._split[said] = self._split.get(said, 0.0) + taken - self._inside.pop()
                if self._inside:
                    self._inside[-1] += taken

        setattr(owner, function, timed)


def status(key: str) -> int:
    """A line of /proc/self/status in bytes; 0 where there is none."""
    file = Path("/proc/self/status")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def reset_peak() -> None:
    """Set VmHWM to what is resident now."""
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text("5")


def hook(watch: Watch, stop: bool) -> None:
    """Watch the parts of train and predict, and time what a step does."""
    from lorikeet.api.base import Base
    from lorikeet.kernels import Kernel
    from lorikeet.models.causal_lm import Head
    from lorikeet.quant._contract import FrozenWeight
    from lorikeet.train import guard, loop
    from lorikeet.train.optim import Stepper

    def classes(base: type[Any]) -> list[type[Any]]:
        return [base, *(deeper for kind in base.__subclasses__() for deeper in classes(kind))]

    def each_kind() -> None:  # those of this run are known once the recipe is read
        names = {"dense": "dequantise", "rows": "dequantise", "linear": "matmul", "backward": "matmul"}
        for kind in classes(FrozenWeight):
            for function, name in names.items():
                if function in vars(kind):
                    watch.time(kind, function, name)

    def ask() -> None:
        if stop:
            os.kill(os.getpid(), signal.SIGTERM)

    watch.part(Base, "load", "load", "between", each_kind)
    watch.part(guard, "train_step", "step", "between", ask)
    watch.part(loop, "save_checkpoint", "save", "between")
    kernels = {"linear": "matmul", "cross_entropy": "head"}
    watch.time(Kernel, "__call__", lambda kernel: kernels.get(kernel.library, _other(kernel.library)))
    watch.time(Head, "loss", "head")
    watch.time(Stepper, "step", "optimizer")


def _other(library: str) -> str:
    return "dequantise" if library.startswith(("dequantise", "nf4", "four_bit", "int8")) else library


def main() -> int:
    notes, words = Path(sys.argv[1]), sys.argv[2:]
    stop = words[0] == "--stop"
    from lorikeet.cli.main import run_command

    watch = Watch("before")
    hook(watch, stop)
    code = run_command(words[stop:])
    watch.end()
    write_file(notes, json.dumps({"code": code, "parts": [asdict(part) for part in watch.parts]}, indent=1) + "\n")
    return code


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command itself sets it
    sys.exit(main())
