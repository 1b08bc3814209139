"""The ceiling counts memory that went back to the system and comes again without asking."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHILD = """
import sys, torch
from lorikeet.kernels import allocator
from lorikeet.train.memory_ceiling import Ceiling, _held

MIB = 1 << 20
device = torch.device("cpu")
if not allocator.holds(device):
    sys.exit(77)
large = torch.ones(250 * MIB, dtype=torch.uint8)
del large  # what reading the weights leaves behind
ceiling = Ceiling(device, limit=0)
ceiling.limit = _held()["VmRSS"] + 300 * MIB
with ceiling.held():
    first = torch.ones(240 * MIB, dtype=torch.uint8)  # lies in the hole
    try:
        second = torch.ones(200 * MIB, dtype=torch.uint8)
    except RuntimeError:
        sys.exit(3)
print((_held()["VmRSS"] - ceiling.limit) / MIB, "MiB beyond the limit")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
def test_holes_of_our_own_allocator_count_towards_the_room() -> None:
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=600, check=False)
    if child.returncode == 77:
        pytest.skip("no compiler for the allocator")
    assert child.returncode == 3, child.stdout + child.stderr
