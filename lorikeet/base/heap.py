"""Memory that was freed goes back to the system.

glibc keeps what blocks of up to 32 MiB held, and does not always use it again: a hole that an aligned block (torch's
all are) left behind is too small for the next one of the same size. Where tensors of a row are large, that doubles
what stays behind: 24 tensors of 16 MiB kept among others that come and go take 776 MiB, or 384 with `map_large`.

Building a tokenizer frees as much as it keeps: after it and the weights, 40 MiB go back for SmolLM2 and 290 MiB for
Gemma 3. Elsewhere than on glibc this does nothing.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

M_MMAP_THRESHOLD = -3  # malloc.h


_others: list[Callable[[], object]] = []


def give_back() -> None:
    """Return the free pages of the C library's heap to the system, and of whoever asked to be called; milliseconds."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)
    for other in _others:
        other()


def also_give_back(other: Callable[[], object]) -> None:
    """Another allocator's way to return its free pages, for `give_back`."""
    _others.append(other)


def map_large(size: int) -> None:
    """From now on, blocks of `size` bytes and more are mapped and unmapped one by one, for the whole process.

    Their pages are made anew each time, up to half a millisecond for each MiB: worth it for few large blocks."""
    choose = _glibc("mallopt")
    if choose is not None:
        choose(M_MMAP_THRESHOLD, size)


class Growth:
    """Gives freed memory back whenever the process has grown by `most` bytes since it last did: tens of milliseconds
    each time, where holes that nothing fits into would else add up. SmolLM2's backward pass over a row of 3,300 tokens,
    all layers computed twice, left 0.75 GiB of them."""

    def __init__(self, most: int = 128 << 20):
        self._most, self._floor = float(most), math.inf

    def look(self) -> None:
        """Ask for the size, some microseconds; give back if need be."""
        now = _resident()
        if now - self._floor > self._most:
            give_back()
            self._floor = _resident()
        else:
            self._floor = min(self._floor, now)


def _resident() -> float:
    """Bytes of the process in memory; 0 elsewhere than on Linux."""
    if not sys.platform.startswith("linux"):
        return 0.0
    return float(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
