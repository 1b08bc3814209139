"""What `lorikeet doctor` finds out: the machine, what is installed, how fast it multiplies; and what to do about it.

`examine` gathers figures and judges nothing; `advice` is a pure function of them, so each piece of advice has a test.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lorikeet.base import installed, machine
from lorikeet.base.files import cache_dir
from lorikeet.plan import speed

GIB = 1 << 30
LITTLE_DISK = 5 * GIB  # a small model, its merged copy and a run's checkpoints
BUSY = 0.2
OMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "MKL_NUM_THREADS")


def examine(output: Path, *, seconds: float = 0.6) -> dict[str, Any]:
    """All figures, as JSON can hold them; `seconds` of timed matmul per dtype. `output` is where runs would go."""
    busy = machine.busy_elsewhere()  # before our own matmuls warm the machine
    total, available = machine.memory()
    swap_total, swap_used = machine.swap()
    gpus = speed.gpus()
    device = torch.device("cuda" if gpus else "cpu")
    threads, cores = torch.get_num_threads(), machine.usable_cores()
    torch.set_num_threads(cores)
    try:
        speeds = speed.speeds(device, seconds=seconds)
    finally:
        torch.set_num_threads(threads)
    return {
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cpu": machine.cpu_model(),
            "cores": os.cpu_count() or 1,
            "usable_cores": cores,
            "features": machine.cpu_features(),
            "busy_elsewhere": busy,
        },
        "memory": {
            "total_bytes": total,
            "available_bytes": available,
            "cgroup_limit_bytes": machine.memory_limit()[0],
            "swap_total_bytes": swap_total,
            "swap_used_bytes": swap_used,
        },
        "gpus": gpus,
        "matmul": {"device": device.type, "flops": speeds},
        "disk": {"cache": _place(cache_dir()), "output": _place(output)},
        "cache": _cache(),
        "versions": _versions(),
        "extras": [_extra(extra) for extra in installed.extras()],
        "threads": {name: os.environ.get(name) for name in OMP},
    }


def advice(found: Mapping[str, Any]) -> list[str]:
    """What is wrong or slow, each with what to do, the worst first."""
    told = _about_disk(found["disk"])
    memory, cpu = found["memory"], found["machine"]
    if memory["available_bytes"] < 2 * GIB:
        told.append(
            f"only {memory['available_bytes'] / GIB:.1f} GiB of memory are free: the smallest model needs about 2; "
            "close other programs, or train with gradient_checkpointing"
        )
    if memory["swap_used_bytes"] > GIB // 2:
        told.append(
            f"{memory['swap_used_bytes'] / GIB:.1f} GiB are swapped out: a training step that swaps takes minutes; "
            "close other programs, or lower train.row_tokens"
        )
    if (busy := cpu["busy_elsewhere"]) is not None and busy > BUSY:
        told.append(
            f"other processes take {busy:.0%} of the CPU: training slows down by more than that, because its threads "
            "wait for each other; stop them, or set model.threads to the cores that are free"
        )
    told += _about_threads(found["threads"], cpu)
    speeds = found["matmul"]["flops"]
    if found["matmul"]["device"] == "cpu" and speeds["bfloat16"] < speeds["float32"]:
        told.append(
            "bfloat16 is not faster than float32 here (no AVX-512 or AMX bf16): model.dtype=auto takes float32, which "
            "needs twice the memory; model.dtype=bfloat16 saves it and takes longer"
        )
    return told


def _about_disk(disks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    told = []
    remedies = {"cache": "set XDG_CACHE_HOME to a folder", "output": "choose another output_dir, one"}
    for name, disk in disks.items():
        if not disk["writable"]:
            told.append(f"{disk['folder']} ({name}) cannot be written to: {remedies[name]} that you may write to")
        elif disk["free_bytes"] < LITTLE_DISK:
            free = disk["free_bytes"] / GIB
            told.append(f"{free:.1f} GiB free at {disk['folder']} ({name}): {remedies[name]} on a larger disk")
    return told


def _about_threads(asked: Mapping[str, str | None], cpu: Mapping[str, Any]) -> list[str]:
    told = []
    spins = [name for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME") if (asked[name] or "0").lower() not in ("0",)]
    if (asked["OMP_WAIT_POLICY"] or "").upper() == "ACTIVE":
        spins.insert(0, "OMP_WAIT_POLICY=ACTIVE")
    if spins:
        told.append(
            f"{', '.join(spins)} makes waiting threads spin: as soon as another process is busy, steps take many times "
            "as long; unset it (lorikeet sets OMP_WAIT_POLICY=PASSIVE)"
        )
    if cpu["usable_cores"] < cpu["cores"]:
        told.append(
            f"this process may use {cpu['usable_cores']} of {cpu['cores']} cores (affinity or a container's limit), "
            f"and more threads than that hinder each other: model.threads={cpu['usable_cores']}"
        )
    return told


def _place(folder: Path) -> dict[str, Any]:
    existing, _, free, writable = machine.disk(folder)
    return {"folder": str(folder), "on": str(existing), "free_bytes": free, "writable": writable}


def _cache() -> dict[str, int]:
    """Bytes in each folder of the cache."""
    home = cache_dir()
    folders = sorted(path for path in home.iterdir() if path.is_dir()) if home.is_dir() else []
    return {folder.name: machine.folder_bytes(folder) for folder in folders}


def _versions() -> dict[str, str | None]:
    named = {"lorikeet": installed.DISTRIBUTION, "torch": "torch", "tokenizers": "tokenizers", "gguf": "gguf"}
    return {"python": platform.python_version(), **{name: installed.version(what) for name, what in named.items()}}


def _extra(extra: installed.Extra) -> dict[str, Any]:
    return {
        "name": extra.name,
        "installed": not extra.missing,
        "missing": list(extra.missing),
        "brings": list(extra.brings),
        "install": extra.install,
    }
