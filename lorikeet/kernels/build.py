"""Compiles the C++ files of this folder at first use and keeps the result in the user's cache.

Plain functions over pointers, without torch's headers: a file compiles in a second or two, and loading needs no
Inductor. A library's name in the cache has a hash of all that decides its code: sources, compiler, flags, processor.
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
    names = [_library(file).name for file in sources()] if compiler() else []
    return hashlib.sha256(repr(names).encode()).hexdigest()[:16] if names else None


@cache
def build() -> dict[str, ctypes.CDLL] | None:
    """The library of each source, compiled where it is not in the cache; None where that cannot be done.

    The OpenMP runtime is the one that torch has loaded: a second one would fight with it for the cores."""
    if compiler() is None:
        return None
    missing = [file for file in sources() if not _library(file).exists()]
    if missing:
        started = time.perf_counter()
        _folder().mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max(1, min(len(missing), os.cpu_count() or 1))) as pool:
            errors = [error for error in pool.map(_compile, missing) if error]
        if errors:
            note(f"CPU kernels do not compile here, so plain PyTorch computes (slower): {errors[0]}")
            return None
        _seconds.append(time.perf_counter() - started)
        note(f"compiled the CPU kernels in {_seconds[-1]:.1f} s; they are kept in {_folder()}")
    try:
        return {file.stem: ctypes.CDLL(str(_library(file))) for file in sources()}
    except OSError as error:
        note(f"a CPU kernel does not load, so plain PyTorch computes (slower): {error}")
        return None


def load(name: str) -> ctypes.CDLL | None:
    """The library of `name`.cpp, or None where nothing can be compiled."""
    libraries = build()
    return None if libraries is None else libraries[name]


_seconds: list[float] = []


def compile_seconds() -> float:
    """How long this process compiled; 0 where everything was in the cache."""
    return sum(_seconds)


def _folder() -> Path:
    return cache_dir() / "kernels"


@cache
def _surroundings() -> bytes:
    """What decides the code besides the source itself."""
    command = compiler()
    assert command is not None
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
    headers = [file.read_bytes() for file in sorted(FOLDER.glob("*.h"))]
    return repr((version, FLAGS, cpu_model(), sorted(cpu_flags()), headers)).encode()


@cache
def _library(file: Path) -> Path:
    digest = hashlib.sha256(_surroundings() + file.read_bytes()).hexdigest()[:16]
    return _folder() / f"{file.stem}-{digest}.so"


def _compile(file: Path) -> str | None:
    """Compile one file under a temporary name, then rename; returns what went wrong."""
    command = compiler()
    assert command is not None
    handle, unfinished = tempfile.mkstemp(dir=_folder(), prefix=file.stem, suffix=".unfinished")
    os.close(handle)
    try:
        done = subprocess.run(
            [command, *FLAGS, str(file), "-o", unfinished], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0][:200]
        Path(unfinished).replace(_library(file))
        return None
    finally:
        Path(unfinished).unlink(missing_ok=True)
