"""A ceiling under the process's memory, so that an allocation fails before the kernel kills the run.

Without one a process is given all the address space it asks for, and is killed when it touches too much of it: of the
machine's, or of its container's (a cgroup). Linux can refuse instead: RLIMIT_DATA bounds what a process may write to.
Before each step it is set to what the process has plus the room that is left; a step that needs more gets an error
that it can answer (guard.py). On a CUDA device the allocator of PyTorch has a bound of its own.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lorikeet.base import machine
from lorikeet.base.heap import give_back
from lorikeet.kernels import allocator

MARGIN, LEAST_MARGIN = 0.04, 16 << 20  # of a container's or the machine's memory, left to others


class Ceiling:
    """`limit`: bytes this run may have at most: of resident memory on a CPU, of the device's on CUDA. The container's
    and the machine's limits hold besides."""

    def __init__(self, device: torch.device, limit: int | None = None, root: Path = machine.ROOT):
        self.limit, self._root = limit, root
        self.by = ""  # what set the ceiling last: limits.memory, the container; the machine needs no name
        self._works = device.type == "cpu" and sys.platform.startswith("linux")
        self._untouched = 0
        if self._works:
            give_back()  # the heap's holes are then all without pages
            held = _held()
            # stacks of threads and the like
            self._untouched = held["VmData"] - held["RssAnon"] - _holes() - allocator.holes()
        if device.type == "cuda" and limit is not None:
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
            self.by = "limits.memory"

    def room(self) -> int:
        """Bytes that the process may still grow by now; also says by what."""
        rooms = dict(_outside(self._root))
        if self.limit is not None:
            rooms["limits.memory"] = self.limit - _held()["VmRSS"]
        self.by = min(rooms, key=lambda name: rooms[name])
        return max(0, rooms[self.by])

    @contextmanager
    def held(self) -> Iterator[None]:
        """While the block runs, memory beyond the room is refused."""
        if not self._works:
            yield
            return
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        room, held = self.room(), _held()
        # pages that went back to the system come again without asking
        holes = max(0, held["VmData"] - held["RssAnon"] - self._untouched)
        most = held["VmData"] + max(0, room - holes)
        for bound in (soft, hard):
            most = most if bound == resource.RLIM_INFINITY else min(most, bound)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _outside(root: Path) -> Iterator[tuple[str, int]]:
    """(what sets a limit, bytes left under it but for the margin)."""
    total, available = machine.memory(root)
    if (found := machine.memory_room(root)) is not None:
        room, limit = found
        yield "the container's memory limit", room - max(LEAST_MARGIN, int(MARGIN * limit))
    swap_total, swap_used = machine.swap(root)
    yield "", available + swap_total - swap_used - max(LEAST_MARGIN, int(MARGIN * total))


def _held() -> dict[str, int]:
    """Bytes of the process: VmData (it may write to), RssAnon and VmRSS (of that and of all, in memory)."""
    found = {}
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmData", "RssAnon", "VmRSS"):
            found[name] = int(rest.split()[0]) * 1024
    return found


_MALLINFO2 = (  # malloc.h
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
)  # fmt: skip


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO2]


def _holes() -> int:
    """Bytes that are free inside the C library's heap; 0 where it does not say."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return 0
    ask.restype = _Mallinfo2
    return int(ask().fordblks)
