"""What the C library keeps of freed memory, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

KEEP = """
import sys
import torch
from lorikeet.base import heap

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024

def ones(mib):
    return torch.ones(mib << 20, dtype=torch.uint8)

ones(30)  # freeing it lets glibc keep blocks of that size
if sys.argv[1] == "mapped":
    heap.map_large(4 << 20)
kept, before = [], resident()
for _ in range(12):
    come, and_, go = ones(16), ones(16), ones(24)
    kept.append(ones(16))
    del come, and_, go
heap.give_back()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_large_blocks_that_are_mapped_leave_no_holes() -> None:
    ran = subprocess.run([sys.executable, "-c", KEEP, "mapped"], capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 1.1 * 12 * 16


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from lorikeet.base import heap

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: pytest.fail("asked for the C library"))
    heap.give_back()
    heap.map_large(1 << 20)
