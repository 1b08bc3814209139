"""What a measurement has to say about its machine: how fast it multiplies, and whether anything else was running.

On few cores one other busy process slows a training step several times over, and a load average lags by a minute. So
what others do is measured exactly: CPU time used by the whole machine less our own (/proc/stat; unknown elsewhere).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STAT = Path("/proc/stat")
BUSY = 0.05  # share of the cores in others' hands above which figures are not worth keeping


class Others:
    """`share`: how much of the machine's CPU time other processes took; None where that cannot be known."""

    share: float | None = None


@contextmanager
def others() -> Iterator[Others]:
    """Measure other processes while the block runs."""
    found, before, start = Others(), _used_seconds(), time.perf_counter()
    yield found
    after, elapsed = _used_seconds(), time.perf_counter() - start
    if before is not None and after is not None:
        found.share = max(0.0, after - before) / (elapsed * (os.cpu_count() or 1))


def _used_seconds() -> float | None:
    """CPU seconds all other processes have used since the machine started; our ended children are not others."""
    if not STAT.exists():
        return None
    user, nice, system, _idle, _wait, interrupt, soft, steal = map(int, STAT.read_text().split("\n", 1)[0].split()[1:9])
    own = os.times()
    ours = own.user + own.system + own.children_user + own.children_system
    return (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK") - ours


def load_average() -> float:
    """Over the last minute."""
    return os.getloadavg()[0]


def matmul_peak_flops(dtype: torch.dtype, device: torch.device, *, seconds: float = 1.5) -> float:
    """The best floating point operations per second of a dense matmul, over shapes of a small model's layers."""
    best = 0.0
    shapes = ((2048, 576, 1536), (2048, 1536, 576), (2048, 1536, 1536), (2048, 2048, 2048))
    for rows, inside, columns in shapes:
        a = torch.randn(rows, inside, dtype=dtype, device=device)
        b = torch.randn(columns, inside, dtype=dtype, device=device).T
        end = time.perf_counter() + seconds / len(shapes)
        while time.perf_counter() < end:
            _wait(device)
            start = time.perf_counter()
            a @ b
            _wait(device)
            best = max(best, 2 * rows * inside * columns / (time.perf_counter() - start))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
