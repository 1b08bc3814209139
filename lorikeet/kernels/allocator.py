"""Large tensors in memory of their own, apart from the C library's heap (allocator.cpp says how and why).

SmolLM2's training step on rows of 1,283 tokens: the process peaks at 1.16 GiB instead of 1.37. Rows of 2,048 tokens
take 1.31.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch

from lorikeet.base import heap
from lorikeet.kernels import build, chosen

_Pointer = ctypes.POINTER(ctypes.c_long)


def holds(device: torch.device) -> bool:
    """Whether large tensors on `device` are made there, from now on and for the whole process. Not where there is no
    compiler, its C++ library is not PyTorch's (zig's), the system is not Linux, or kernels are `eager`."""
    return device.type == "cpu" and chosen() == "auto" and _install()


@cache
def _install() -> bool:
    library = build.load("allocator")
    if library is None:
        return False
    library.allocator_install.argtypes = (_Pointer,)
    answer = ctypes.c_long()
    library.allocator_install(ctypes.byref(answer))
    if answer.value:
        heap.also_give_back(library.allocator_give_back)
    return bool(answer.value)


def holes() -> int:
    """Bytes that lie free in there, at least; 0 where no tensors are made there (which is not begun by asking)."""
    if not (_install.cache_info().currsize and _install()):
        return 0
    now, most = used()
    return most - now


def used() -> tuple[int, int]:
    """Bytes of such tensors, (now, at most so far); zeros where none are made there."""
    library = build.load("allocator")
    now, most = ctypes.c_long(), ctypes.c_long()
    if library is not None:
        library.allocator_used.argtypes = (_Pointer, _Pointer)
        library.allocator_used(ctypes.byref(now), ctypes.byref(most))
    return now.value, most.value
