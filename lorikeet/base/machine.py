"""What this machine has, asked of the system: cores, features, memory, disk, and what other processes take of it.

A container sees the whole machine in the usual places and is stopped at a limit that stands elsewhere (cgroups), so
every figure here is the smaller of the two. Nothing needs torch. `root` is where the system's files are looked for.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

# of /proc/cpuinfo's long list, those that decide how fast a matmul is
FEATURES = (
    "avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16", "asimd", "bf16", "sve"
)  # fmt: skip
ROOT = Path("/")
_NO_LIMIT = 1 << 60  # cgroup v1 writes a number near 2^63 for none


def cpu_model(root: Path = ROOT) -> str:
    """The processor's name."""
    return _cpuinfo(root).get("model name") or platform.processor() or platform.machine()


def cpu_features(root: Path = ROOT) -> list[str]:
    """Those of FEATURES that the processor has; empty where the system does not say."""
    flags = cpu_flags(root)
    return [name for name in FEATURES if name in flags]


def cpu_flags(root: Path = ROOT) -> set[str]:
    """All instruction sets that the system names; empty where it names none."""
    info = _cpuinfo(root)
    return set((info.get("flags") or info.get("Features") or "").split())


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process may keep busy: within its affinity and within its cgroup's share of time."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(root)
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def memory(root: Path = ROOT) -> tuple[int, int]:
    """(total, available) bytes of memory for this process: the machine's, or its cgroup's where that is less."""
    info = {}
    if (root / "proc/meminfo").is_file():
        for line in _read(root / "proc/meminfo").splitlines():
            name, _, rest = line.partition(":")
            info[name] = int(rest.split()[0]) * 1024
    total = info.get("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = info.get("MemAvailable", total)
    if (room := memory_room(root)) is not None:
        available = max(0, min(available, room[0]))
    limit, _ = memory_limit(root)
    return total if limit is None else min(limit, total), available


def memory_limit(root: Path = ROOT) -> tuple[int | None, int]:
    """(limit, used) bytes of the process's cgroup, the tightest of those around it; (None, 0) for no limit."""
    return min(_memory_limits(root), key=lambda one: one[0], default=(None, 0))


def memory_room(root: Path = ROOT) -> tuple[int, int] | None:
    """(bytes left, limit) of the cgroup that has least left, which may be a larger one that others fill; None for no
    limit."""
    return min(((limit - used, limit) for limit, used in _memory_limits(root)), default=None)


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) bytes of the process's cgroup and of those around it, where they have a limit, innermost first."""
    names = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    for folder in _cgroup_folders("memory", root):
        for limit_name, used_name in names:
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            # what the page cache holds is counted as used and is given back on demand
            cached = _statistic(folder / "memory.stat", ("inactive_file", "total_inactive_file"))
            if limit is not None and limit < _NO_LIMIT:
                yield limit, max(0, (used or 0) - cached)


def swap(root: Path = ROOT) -> tuple[int, int]:
    """(total, used) bytes of swap space; (0, 0) where there is none or it cannot be known."""
    info = {}
    if (root / "proc/meminfo").is_file():
        lines = (line.partition(":") for line in _read(root / "proc/meminfo").splitlines())
        info = {name: int(rest.split()[0]) * 1024 for name, _, rest in lines if name.startswith("Swap")}
    total = info.get("SwapTotal", 0)
    return total, total - info.get("SwapFree", total)


def disk(folder: Path) -> tuple[Path, int, int, bool]:
    """(nearest folder that exists, total bytes, free bytes, may be written to) of where `folder` would be."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    usage = shutil.disk_usage(existing)
    return existing, usage.total, usage.free, os.access(existing, os.W_OK)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; 0 for none."""
    total = 0
    for file in folder.rglob("*") if folder.is_dir() else ():
        try:
            total += 0 if file.is_symlink() or not file.is_file() else file.stat().st_size
        except OSError:  # removed meanwhile, or not ours to see
            continue
    return total


def busy_elsewhere(seconds: float = 0.3, root: Path = ROOT) -> float | None:
    """The share of the machine's CPU time that other processes take while this one waits; None where unknown."""
    before = _other_seconds(root)
    start = time.perf_counter()
    time.sleep(seconds)
    after, elapsed = _other_seconds(root), time.perf_counter() - start
    if before is None or after is None:
        return None
    return min(1.0, max(0.0, after - before) / (elapsed * (os.cpu_count() or 1)))


def _other_seconds(root: Path) -> float | None:
    stat = root / "proc/stat"
    if not stat.is_file():
        return None
    user, nice, system, _idle, _wait, interrupt, soft, steal = map(int, _read(stat).split("\n", 1)[0].split()[1:9])
    own = os.times()
    return (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    found: dict[str, str] = {}
    file = root / "proc/cpuinfo"
    for line in _read(file).splitlines() if file.is_file() else []:
        name, colon, rest = line.partition(":")
        if colon:
            found.setdefault(name.strip(), rest.strip())
    return found


def _cpu_quota(root: Path) -> float | None:
    """Cores' worth of time that the cgroups allow, the tightest; None for no limit."""
    found: list[float] = []
    for folder in _cgroup_folders("cpu", root):
        words = _read(folder / "cpu.max").split() if (folder / "cpu.max").is_file() else []
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdigit():
            quota, period = int(words[0]), int(words[1])
        if quota is not None and quota > 0 and period:
            found.append(quota / period)
    return min(found, default=None)


def _cgroup_folders(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's cgroups for a controller, innermost first; of version 2 and of version 1."""
    lines = _read(root / "proc/self/cgroup").splitlines() if (root / "proc/self/cgroup").is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mounts = {"": ("", "unified"), controller: (controller,)}.get(controllers.split(",")[0], ())
        if controller in controllers.split(","):
            mounts = (controllers, controller)
        for mount in mounts:
            top = root / "sys/fs/cgroup" / mount
            inner = top / path.lstrip("/")
            for folder in (inner, *inner.parents):
                if folder.is_dir():
                    yield folder
                if folder == top:
                    break


def _number(path: Path) -> int | None:
    """The whole number in a file; None for no file, or for `max`."""
    try:
        return int(_read(path))
    except (OSError, ValueError):
        return None


def _statistic(path: Path, names: tuple[str, ...]) -> int:
    """The largest of the named figures in a file of `name number` lines; 0 for none."""
    if not path.is_file():
        return 0
    rows = (line.split() for line in _read(path).splitlines())
    return max((int(row[1]) for row in rows if len(row) == 2 and row[0] in names), default=0)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
