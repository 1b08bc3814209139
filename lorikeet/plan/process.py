"""From the bytes of tensors to those of the process: what else resident memory holds while training.

Python, torch and the tokenizer are resident in the planning process too, so they are read, not guessed. What an
allocator loses between blocks and what oneDNN keeps for each shape of matmul cannot be: OVERHEAD was fitted to runs
of SmolLM2-135M and of a Llama of 1.1 billion weights on a CPU (docs/plan.md has the figures).
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from lorikeet.plan.simulate import Simulated

OVERHEAD = 1.5  # memory taken over memory asked for, of what comes and goes in a step; weights stay where they are
CUDA_BYTES = 600 << 20  # the driver's context and cuBLAS's workspace
TOKENIZER_BYTES = 2300  # of a token of the vocabulary, where no tokenizer could be opened
_LASTING = ("weights", "quantisation state", "trained", "optimizer")


@dataclass(frozen=True)
class Process:
    """Bytes that the run needs: of the process on a CPU, of the device's memory on CUDA."""

    holds: str  # what `base` is of
    base: int  # before the model is loaded
    tensors: int
    overhead: int

    @property
    def total(self) -> int:
        return self.base + self.tensors + self.overhead


@dataclass(frozen=True)
class Resident:
    """What the planning process held before it simulated anything: what a run has held by then, too."""

    bytes: int

    def estimate(self, found: Simulated, *, on_cpu: bool, vocabulary: int, holes: bool) -> Process:
        """`vocabulary`: tokens of a tokenizer that is not loaded here and will be in the run; else 0. `holes`: tensors
        lie in the C library's heap, which loses memory between them."""
        lasting = sum(found.by_kind[kind] for kind in _LASTING)
        overhead = int((OVERHEAD - 1) * (found.peak_bytes - lasting)) if holes or not on_cpu else 0
        base = self.bytes + vocabulary * TOKENIZER_BYTES if on_cpu else CUDA_BYTES
        holds = "Python, torch and the tokenizer" if on_cpu else "the driver's context"
        return Process(holds, base, found.peak_bytes, overhead)


def resident() -> Resident:
    """As it is now. Where there is no /proc, its peak so far."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return Resident(int(line.split()[1]) * 1024)
    unit = 1 if sys.platform == "darwin" else 1024
    return Resident(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
