"""The machine as a container sees it: the smaller of what is there and what its cgroup allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorikeet.base import machine

MEMINFO = "MemTotal: 8000000 kB\nMemFree: 1000 kB\nMemAvailable: 6000000 kB\nSwapTotal: 2000 kB\nSwapFree: 500 kB\n"
CPUINFO = "processor : 0\nmodel name : A CPU\nflags : fpu avx2 amx_bf16 sse\n\nprocessor : 1\nmodel name : B\n"


@pytest.fixture
def system(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    (tmp_path / "proc/cpuinfo").write_text(CPUINFO)
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_cpu(system: Path) -> None:
    assert machine.cpu_model(system) == "A CPU"
    assert machine.cpu_features(system) == ["avx2", "amx_bf16"]


def test_memory_without_a_limit(system: Path) -> None:
    assert machine.memory(system) == (8000000 * 1024, 6000000 * 1024)
    assert machine.memory_limit(system) == (None, 0) and machine.memory_room(system) is None
    assert machine.swap(system) == (2000 * 1024, 1500 * 1024)


def test_version_2_the_tightest_cgroup_counts(system: Path) -> None:
    write(system, "proc/self/cgroup", "0::/outer/inner\n")
    write(system, "sys/fs/cgroup/outer/memory.max", "3000000000\n")
    write(system, "sys/fs/cgroup/outer/memory.current", "1500000000\n")
    write(system, "sys/fs/cgroup/outer/memory.stat", "anon 5\ninactive_file 500000000\n")
    write(system, "sys/fs/cgroup/outer/inner/memory.max", "max\n")
    write(system, "sys/fs/cgroup/outer/inner/cpu.max", "150000 100000\n")
    assert machine.memory_limit(system) == (3000000000, 1000000000)
    assert machine.memory(system) == (3000000000, 2000000000)
    assert machine.usable_cores(system) == 1


def test_a_larger_cgroup_around_may_have_less_room(system: Path) -> None:
    """What its other processes take is not there for us, and the kernel kills at either limit."""
    write(system, "proc/self/cgroup", "0::/outer/inner\n")
    write(system, "sys/fs/cgroup/outer/memory.max", "3000000000\n")
    write(system, "sys/fs/cgroup/outer/memory.current", "2900000000\n")
    write(system, "sys/fs/cgroup/outer/inner/memory.max", "2000000000\n")
    write(system, "sys/fs/cgroup/outer/inner/memory.current", "500000000\n")
    assert machine.memory_limit(system) == (2000000000, 500000000)
    assert machine.memory_room(system) == (100000000, 3000000000)
    assert machine.memory(system) == (2000000000, 100000000)


def test_version_1(system: Path) -> None:
    write(system, "proc/self/cgroup", "4:memory:/box\n3:cpu,cpuacct:/box\n")
    write(system, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{(1 << 63) - 4096}\n")
    write(system, "sys/fs/cgroup/memory/box/memory.limit_in_bytes", "2000000000\n")
    write(system, "sys/fs/cgroup/memory/box/memory.usage_in_bytes", "2500000000\n")
    write(system, "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "-1\n")
    assert machine.memory(system) == (2000000000, 0)
    assert machine._cpu_quota(system) is None


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    total, available = machine.memory(tmp_path)
    assert total == available > 1 << 20
    assert machine.cpu_features(tmp_path) == []
    assert machine.swap(tmp_path) == (0, 0)
    assert machine.busy_elsewhere(0.0, tmp_path) is None


def test_this_machine() -> None:
    total, available = machine.memory()
    assert 0 < available <= total
    assert machine.usable_cores() >= 1
    assert machine.cpu_model()


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 5)
    existing, total, free, writable = machine.disk(tmp_path / "file" / "deeper")
    assert (existing, writable) == (tmp_path, True)
    assert 0 < free <= total
    assert machine.folder_bytes(tmp_path) == 5
    assert machine.folder_bytes(tmp_path / "gone") == 0
