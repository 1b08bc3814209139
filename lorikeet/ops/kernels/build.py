"""Compiles the C++ files of this folder at first use and keeps the result in the user's cache.

Plain functions over pointers, without torch's headers: a file compiles in a second or two, and loading needs no
Inductor. The name of the cached folder is a hash of everything that decides the code: sources, compiler, processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from lorikeet.base.files import cache_dir
from lorikeet.base.log import note
from lorikeet.base.machine import cpu_flags, cpu_model

FOLDER = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
# no -ffast-math: infinities are masks here. Reductions say `omp simd` where their order does not matter
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
    "-fno-exceptions", "-fno-rtti", "-shared", "-fPIC", "-w",
)  # fmt: skip


def sources() -> list[Path]:
    return sorted(FOLDER.glob("*.cpp"))


@cache
def compiler() -> str | None:
    """The first C++ compiler on the path, or None."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


@cache
def fingerprint() -> str | None:
    """What decides the kernels' results, as a short hash; None without a compiler."""
    command = compiler()
    if command is None:
        return None
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256(repr((version, FLAGS, cpu_model(), sorted(cpu_flags()))).encode())
    for file in [*sources(), *sorted(FOLDER.glob("*.h"))]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


@cache
def build() -> Path | None:
    """The folder with a library per source, compiled where it is not there; None where that cannot be done."""
    name = fingerprint()
    if name is None:
        return None
    folder = cache_dir() / "kernels" / name
    missing = [file for file in sources() if not _library(folder, file.stem).exists()]
    if not missing:
        return folder
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max(1, min(len(missing), os.cpu_count() or 1))) as pool:
        errors = [error for error in pool.map(lambda file: _compile(file, folder), missing) if error]
    if errors:
        note(f"CPU kernels do not compile here, so plain PyTorch computes (slower): {errors[0]}")
        return None
    _seconds.append(time.perf_counter() - started)
    note(f"compiled the CPU kernels in {_seconds[-1]:.1f} s; they are kept in {folder}")
    return folder


_seconds: list[float] = []


def compile_seconds() -> float:
    """How long this process compiled; 0 where everything was in the cache."""
    return sum(_seconds)


@cache
def load(name: str) -> ctypes.CDLL | None:
    """The library of `name`.cpp, or None where there is none. The OpenMP runtime is the one that torch has loaded:
    a second one would fight with it for the cores."""
    folder = build()
    if folder is None:
        return None
    try:
        return ctypes.CDLL(str(_library(folder, name)))
    except OSError as error:
        note(f"a CPU kernel does not load, so plain PyTorch computes (slower): {error}")
        return None


def _library(folder: Path, name: str) -> Path:
    return folder / f"{name}.so"


def _compile(file: Path, folder: Path) -> str | None:
    """Compile one file under a temporary name, then rename; returns what went wrong."""
    command = compiler()
    assert command is not None
    handle, unfinished = tempfile.mkstemp(dir=folder, prefix=file.stem, suffix=".unfinished")
    os.close(handle)
    try:
        done = subprocess.run(
            [command, *FLAGS, str(file), "-o", unfinished], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0][:200]
        Path(unfinished).replace(_library(folder, file.stem))
        return None
    finally:
        Path(unfinished).unlink(missing_ok=True)
