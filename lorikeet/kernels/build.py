"""Compiles the C++ files of this folder at first use and keeps the result in the user's cache.

Plain functions over pointers, without torch's headers but for one file: a file compiles in a second or two, and
loading needs no Inductor. A library's name in the cache has a hash of all that decides its code: sources, compiler,
flags, processor, PyTorch's version.

Where the system has no compiler, the package `ziglang` serves (extra `compiler`): clang with its headers, as a wheel.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from lorikeet.base.extras import require
from lorikeet.base.files import cache_dir
from lorikeet.base.log import note
from lorikeet.base.machine import cpu_flags, cpu_model

FOLDER = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
# no -ffast-math: infinities are masks here. Reductions say `omp simd` where their order does not matter
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=fast", "-fno-exceptions", "-fno-rtti", "-fPIC", "-w",
)  # fmt: skip


def sources() -> list[Path]:
    return sorted(FOLDER.glob("*.cpp"))


@cache
def compiler() -> str | None:
    """The first C++ compiler on the path, else the one that is installed as a package, or None."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None) or _zig()


def _zig() -> str | None:
    """zig's own program."""
    if sys.platform != "linux" or find_spec("ziglang") is None:
        return None
    package = require(
        "ziglang", extra="compiler", needed_by="compiled CPU kernels where the system has no C++ compiler"
    )
    return str(Path(package.__path__[0]) / "zig")


@cache
def fingerprint() -> str | None:
    """What decides the kernels' results, as a short hash; None without a compiler."""
    names = [_library(file).name for file in sources()] if compiler() else []
    return hashlib.sha256(repr(names).encode()).hexdigest()[:16] if names else None


@cache
def build() -> dict[str, ctypes.CDLL] | None:
    """The library of each source, compiled where it is not in the cache; None where that cannot be done."""
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
    version = _run([*_front(), "--version"]).stdout
    headers = [file.read_bytes() for file in sorted(FOLDER.glob("*.h"))]
    return repr((version, _flags(), cpu_model(), sorted(cpu_flags()), headers, metadata.version("torch"))).encode()


@cache
def _library(file: Path) -> Path:
    digest = hashlib.sha256(_surroundings() + file.read_bytes()).hexdigest()[:16]
    return _folder() / f"{file.stem}-{digest}.so"


def _front() -> list[str]:
    """The command that compiles."""
    command = compiler()
    assert command is not None
    return [command, "c++"] if _is_zig(command) else [command]


def _is_zig(command: str) -> bool:
    return Path(command).name == "zig"


def _flags() -> list[str]:
    # the compilers' own choice is 256 bits: a softmax takes a third longer with it
    return [*FLAGS, *(["-mprefer-vector-width=512"] if "avx512f" in cpu_flags() else [])]


def _linker() -> list[str]:
    """The command that makes a library of what was compiled. What parallel.h asks for is left to be found when it is
    loaded, and then none of it may be missing (`now`).

    zig's linker is called by itself: zig c++ would first build a C++ library of its own, for minutes."""
    (command, *more) = _front()
    if not more:
        return [command, "-shared", "-Wl,-z,now"]
    return [command, "ld.lld", "-shared", "-z", "now", *_loaded("libstdc++.so")]


def _loaded(name: str) -> list[str]:
    """The file of a library that torch has loaded into this process."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return [line[line.index("/") :] for line in maps if f"/{name}" in line][:1]


def _of_torch(file: Path) -> tuple[list[str], list[str]]:
    """What the compiler and the linker are told for a file that uses PyTorch's headers."""
    found = find_spec("torch")
    if found is None or not found.submodule_search_locations or "<c10/" not in file.read_text(encoding="utf-8"):
        return [], []
    torch = Path(found.submodule_search_locations[0])
    return [f"-I{torch / 'include'}"], [str(torch / "lib" / "libc10.so")]


def _compile(file: Path) -> str | None:
    """Compile one file under temporary names, then rename; returns what went wrong.

    Where PyTorch's headers do not suit the compiler, a file does without them and says that it cannot serve."""
    with tempfile.TemporaryDirectory(dir=_folder(), prefix=file.stem, suffix=".unfinished") as folder:
        code, library = str(Path(folder) / "code.o"), str(Path(folder) / "library.so")
        headers, linked = _of_torch(file)
        done = None
        for with_headers, with_libraries in dict.fromkeys([(tuple(headers), tuple(linked)), ((), ())]):
            steps = (
                [*_front(), *_flags(), *with_headers, "-c", str(file), "-o", code],
                [*_linker(), code, *with_libraries, "-o", library],
            )
            done = next((failed for command in steps if (failed := _run(command)).returncode), None)
            if done is None:
                break
        if done is not None:
            return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0][:200]
        Path(library).replace(_library(file))
    return None


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    kept = str(_folder() / "zig")
    environment = os.environ | {"ZIG_LOCAL_CACHE_DIR": kept, "ZIG_GLOBAL_CACHE_DIR": kept}
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", env=environment, check=False
    )
