"""Tensors that stay to the end have pages of their own.

The C library's heap puts a new block into the first hole that is large enough. An optimizer's states, made among
tensors that come and go, then lie between holes that fit nothing again: SmolLM2's took half a GiB that way.
"""

from __future__ import annotations

import mmap
import sys

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

LEAST = 1 << 16  # bytes; smaller ones share pages


def zeros_apart(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Zeros of the shape and, if `dtype` is None, the dtype of `like`, contiguous."""
    dtype = dtype or like.dtype
    size = like.numel() * dtype.itemsize
    if like.device.type != "cpu" or size < LEAST or isinstance(like, FakeTensor):
        return torch.zeros_like(like, dtype=dtype, memory_format=torch.contiguous_format)
    kind = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if sys.platform != "win32" else {}
    return torch.frombuffer(mmap.mmap(-1, size, **kind), dtype=dtype).view(like.shape)


def copy_apart(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in `dtype`."""
    return zeros_apart(tensor, dtype).copy_(tensor)
