"""What a matmul costs at a length it has not seen: time, and memory that stays. The reason for rounded sizes.

python benchmarks/new_shapes.py
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch

SIZES = ((960, 576), (576, 576), (3072, 576), (576, 1536))  # SmolLM2-135M's linears, [out, in]
LENGTHS = 60


def rss_mib() -> float:
    """Resident memory of this process now (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def measure(lengths: list[int]) -> tuple[float, float]:
    """(median milliseconds of the four linears, MiB of memory more for each length)."""
    weights = [torch.randn(size).bfloat16() for size in SIZES]
    inputs = {width: torch.randn(max(lengths), width).bfloat16() for _, width in SIZES}
    before, times = rss_mib(), []
    for length in lengths:
        start = time.perf_counter()
        for weight in weights:
            inputs[weight.shape[1]][:length] @ weight.T
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2] * 1e3, (rss_mib() - before) / len(lengths)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, lengths in (("same", [512] * LENGTHS), ("new", random.Random(0).sample(range(300, 600), LENGTHS))):
        milliseconds, memory = measure(lengths)
        print(f"{name:<5} lengths: {milliseconds:6.1f} ms, {memory:5.2f} MiB more for each")
