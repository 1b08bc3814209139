"""How fast this machine multiplies, per dtype: the figure that decides the dtype, and how long training will take."""

from __future__ import annotations

import time

import torch

DTYPES = ("float32", "bfloat16", "float16")
# small ones first: a CPU without a dtype's instructions may take a second for the last
_SIZES = ((256, 256, 256), (1024, 768, 768), (2048, 1536, 1536))


def matmul_flops(dtype: torch.dtype, device: torch.device, *, seconds: float = 0.6) -> float:
    """The best operations per second of a dense matmul within about `seconds`; 0 where the dtype has no matmul."""
    best, part = 0.0, seconds / len(_SIZES)
    for rows, inside, columns in _SIZES:
        work = 2 * rows * inside * columns
        if best and work / best > part:
            break  # one would take longer than its part of the time
        try:
            a = torch.ones(rows, inside, dtype=dtype, device=device)
            b = torch.ones(columns, inside, dtype=dtype, device=device).T  # as a linear has it
            end = time.perf_counter() + part
            a @ b  # the first makes the kernel
            while True:
                _wait(device)
                start = time.perf_counter()
                a @ b
                _wait(device)
                now = time.perf_counter()
                best = max(best, work / (now - start))
                if now > end:
                    break
        except RuntimeError:
            return 0.0
    return best


def speeds(device: torch.device, *, seconds: float = 0.6) -> dict[str, float]:
    """dtype's name -> operations per second, for each of DTYPES."""
    return {name: matmul_flops(getattr(torch, name), device, seconds=seconds) for name in DTYPES}


def gpus() -> list[dict[str, object]]:
    """Name, memory and bfloat16 of each CUDA device; empty where there is none."""
    found: list[dict[str, object]] = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        bf16 = about.major >= 8  # Ampere and later multiply it in hardware
        found.append({"name": about.name, "memory_bytes": about.total_memory, "bfloat16": bf16})
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
