"""Large tensors in memory of their own. It serves a whole process and for good, so each test has one to itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lorikeet import kernels
from lorikeet.kernels import build

pytestmark = pytest.mark.skipif(
    build.compiler() is None or build._is_zig(build.compiler() or "") or not sys.platform.startswith("linux"),
    reason="needs a compiler with libstdc++, and Linux",
)
BEGIN = """
import gc, os, random, sys, threading, warnings
import torch
from lorikeet.base.heap import give_back
from lorikeet.kernels import allocator
assert allocator.holds(torch.device("cpu")) and not allocator.holds(torch.device("cuda"))
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
"""


def run(program: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + program], capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tensors_keep_their_values_while_others_come_and_go() -> None:
    run("""
draw, kept = random.Random(0), []
def check(value, tensor):
    assert bool((tensor == value).all())
for turn in range(4000):
    if kept and draw.random() < 0.5:
        check(*kept.pop(draw.randrange(len(kept))))
    else:
        size = draw.choice([10, 1000, 65535, 65536, 65537, 100_000, 1 << 20])
        kept.append((turn % 120, torch.full((size,), turn % 120, dtype=torch.uint8)))
    if len(kept) > 60:
        for one in kept[:30]:
            check(*one)
        del kept[:30]
assert allocator.used()[0] > 0
for one in kept:
    check(*one)
kept.clear(); one = None
assert allocator.used()[0] == 0, allocator.used()
""")


def test_holes_are_used_again_and_touching_ones_are_one() -> None:
    run("""
MIB = 1 << 20
def block(mib): return torch.ones(mib * MIB, dtype=torch.uint8)
wall = block(1)
for sizes in ([4] * 8, [8] * 4, [32], [1, 31], [16, 2, 14]) * 20:  # 32 MiB, cut otherwise each time
    kept = [block(size) for size in sizes]
    del kept
grown = resident()
for _ in range(50):
    kept = [block(16), block(16)]
    del kept
assert resident() - grown < MIB, (resident(), grown)
assert allocator.used() == (MIB, 33 * MIB), allocator.used()
""")


def test_several_threads_at_once_and_a_forked_process() -> None:
    run("""
def work(value):
    for _ in range(300):
        tensor = torch.full((100_000,), value, dtype=torch.int32)
        assert int(tensor[0]) == int(tensor[-1]) == value
work(0)  # PyTorch makes each operation ready at its first call; a process forked meanwhile would wait for that for ever
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for thread in threads: thread.start()
warnings.simplefilter("ignore")
for _ in range(5):  # while they hold the door
    child = os.fork()
    if child == 0:
        work(9)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
for thread in threads: thread.join()
assert allocator.used()[0] == 0
""")


def test_what_the_system_refuses_is_torchs_error() -> None:
    said = run("""
try:
    torch.empty(1 << 50)
except RuntimeError as error:
    print(str(error))
""")
    assert "can't allocate memory" in said


def test_under_a_limit_of_addresses_the_error_is_the_same_and_the_rest_goes_on() -> None:
    run("""
import resource
size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20),) * 2)
kept = []
try:
    while True: kept.append(torch.ones(8 << 20, dtype=torch.uint8))
except RuntimeError as error:
    assert "can't allocate memory" in str(error), error
assert len(kept) >= 16, len(kept)
kept.clear()
assert float(torch.ones(4 << 20).sum()) == 4 << 20
""")


def test_free_pages_go_back_when_asked() -> None:
    run("""
kept = [torch.ones(64 << 20, dtype=torch.uint8) for _ in range(3)]
most = resident()
del kept[1]
give_back()
assert most - resident() > 60 << 20, (most, resident())
assert all(bool((tensor == 1).all()) for tensor in kept)
again = torch.zeros(64 << 20, dtype=torch.uint8)
assert not again.any()
""")


def test_views_numpy_and_resizing_work() -> None:
    run("""
tensor = torch.arange(1 << 20)
array = tensor.numpy()
del tensor; gc.collect()
assert int(array.sum()) == ((1 << 20) - 1) * (1 << 19)
part = torch.arange(1 << 20)[5:7]
assert part.tolist() == [5, 6]
grown = torch.arange(10); grown.resize_(1 << 20)
assert grown[:10].tolist() == list(range(10))
copied = torch.arange(1 << 18).clone().share_memory_()
assert int(copied[-1]) == (1 << 18) - 1
""")


def test_eager_kernels_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from lorikeet.kernels import allocator

    monkeypatch.setattr(kernels, "_chosen", ["eager"])
    assert not allocator.holds(torch.device("cpu"))
