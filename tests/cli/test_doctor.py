"""The lines that doctor prints: each fact in words, and what is missing with the line that installs it."""

from __future__ import annotations

from typing import Any

from lorikeet.cli.doctor import _lines

GIB = 1 << 30
FOUND: dict[str, Any] = {
    "machine": {"system": "Linux", "cpu": "A CPU", "cores": 8, "usable_cores": 2, "features": []},
    "memory": {
        "available_bytes": 3 * GIB, "total_bytes": 4 * GIB, "cgroup_limit_bytes": 4 * GIB,
        "swap_total_bytes": 2 * GIB, "swap_used_bytes": GIB,
    },
    "gpus": [{"name": "A GPU", "memory_bytes": 24 * GIB, "bfloat16": False}],
    "matmul": {"device": "cuda", "flops": {"float32": 5e12, "bfloat16": 0.0}},
    "disk": {
        "cache": {"folder": "/c", "free_bytes": 50 << 20, "writable": False},
        "output": {"folder": "runs", "free_bytes": GIB, "writable": True},
    },
    "cache": {},
    "versions": {"python": "3.12", "gguf": None},
    "threads": {"OMP_NUM_THREADS": "4", "OMP_WAIT_POLICY": None},
    "extras": [
        {"name": "hf", "installed": False, "missing": ["hub>=1"], "brings": ["hub <name>"], "install": "pip install x"},
        {"name": "lint", "installed": True, "missing": [], "brings": [], "install": "pip install y"},
        {"name": "test", "installed": False, "missing": ["a>=1"], "brings": [], "install": "pip install z"},
    ],
}  # fmt: skip


def test_what_doctor_says() -> None:
    text = "\n".join(f"{name} {line}" for name, line in _lines(FOUND))
    for said in (
        "2 of 8 cores; features unknown",
        "memory 3.0 GiB free of 4.0 GiB (the container's limit is 4.0 GiB)",
        "swap: 1.0 GiB used of 2.0 GiB",
        "gpu A GPU, 24.0 GiB, no bfloat16",
        "matmul float32 5.00, bfloat16 0.00 TFLOP/s (cuda)",
        "cache /c: 50 MiB free, read-only",
        "empty",
        "versions python 3.12\n",
        "threads OMP_NUM_THREADS=4\n",
        "extras hf: missing hub>=1 (hub NAME): pip install x",
        "lint: installed (only for work on lorikeet itself)",
        "test: missing (only for work on lorikeet itself)",
    ):
        assert said in text
