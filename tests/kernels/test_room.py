"""What a kernel works on is there even where memory has just ended: in its middle it cannot say that it is not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lorikeet import kernels

CHILD = """
import ctypes, resource, sys
from pathlib import Path
import torch
from lorikeet.kernels import cross_entropy, dequantise_gptq

torch.set_num_threads(1)
wide = 1 << 20

def losses(wide):
    given = torch.zeros(1, wide), torch.zeros(1, dtype=torch.int64), torch.ones(1), torch.ones(1), torch.zeros(1).bool()
    return lambda: cross_entropy.cross_entropy_(*given, bias=None, scale=1.0, softcap=None, gradient=True)

def dense(wide):
    codes, zeros, scales = torch.zeros(1, wide // 2).byte(), torch.zeros(1, 2).byte(), torch.zeros(1, 2)
    out = torch.empty(1, wide)  # the second group begins within a byte: a whole row is unpacked
    return lambda: dequantise_gptq.dequantise(codes, zeros, scales, None, out, bits=4, group_size=wide - 1)

one = globals()[sys.argv[1]]
one(64)()  # its library is loaded
call, malloc = one(wide), ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size, size))
for piece in (1 << 20, 1 << 16, 1 << 12):
    while malloc(piece):
        pass
call()
"""


@pytest.mark.parametrize("kernel", ["losses", "dense"])
def test_where_memory_has_ended(kernel: str) -> None:
    kernels.choose("auto")  # whatever was opened before
    if not kernels.serves(torch.empty(1)) or sys.platform != "linux":
        pytest.skip("no compiler here, or no limit of memory")
    done = subprocess.run([sys.executable, "-c", CHILD, kernel], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
