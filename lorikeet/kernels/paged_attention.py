"""The face of paged_attention.cpp: keys and values in pages, written, and met by one new token of each text."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lorikeet.kernels import DTYPES, Kernel, serves
from lorikeet.kernels.counting import count

PAGE = 32  # the C++ side's
_attend, _write = Kernel("paged_attention", "paged_attention"), Kernel("paged_attention", "paged_write")


def takes(q: Tensor, k: Tensor, v: Tensor, keys: Tensor) -> bool:
    """Whether the kernel computes these: queries [B, H, E], new keys and values [B, K, E], and those that are kept."""
    kept = keys.dtype in (q.dtype, torch.int8) and keys.shape[-2] == PAGE
    return kept and q.shape[-1] % 16 == 0 and serves(q, k, v) and all(x.stride(-1) == 1 for x in (q, k, v))


def keeps(k: Tensor, v: Tensor, keys: Tensor) -> bool:
    """Whether the kernel writes new keys and values [T, K, E] to those that are kept."""
    kept = keys.dtype in (k.dtype, torch.int8) and keys.shape[-2] == PAGE
    return kept and serves(k, v) and all(x.stride(-1) == 1 for x in (k, v))


def write(
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    scales: tuple[Tensor, Tensor] | None,
    pages: Tensor,
    within: Tensor,
) -> None:
    """Keeps k and v [T, K, E] at the tokens `within` of `pages` [T] int64, in keys and values [pages, K, PAGE, E] (and
    `scales` [pages, K, PAGE])."""
    sizes = [len(k), *k.shape[1:], *(step for x in (k, v) for step in x.stride()[:2])]
    pages, within = pages.contiguous(), within.contiguous()
    call = np.array([*sizes, pages.data_ptr(), within.data_ptr()], np.int64)
    _write(DTYPES[k.dtype], call.ctypes.data, k, v, keys, values, *(scales or (None, None)))


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    scales: tuple[Tensor, Tensor] | None,
    table: np.ndarray,
    lengths: np.ndarray,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Keeps k and v [B, K, E] as tokens `lengths` [B] int64 of texts whose pages are in `table` [B, n] int32, in keys
    and values [pages, K, PAGE, E] (and `scales` [pages, K, PAGE]), and returns what q [B, H, E] finds there, as q."""
    rows, heads, width = q.shape
    out = torch.empty(rows, heads, width, dtype=q.dtype, device=q.device)
    seen = lengths + 1 if window is None else np.minimum(lengths + 1, window)
    count("attention", 4.0 * heads * width * float(seen.sum()))
    sizes = [rows, heads, k.shape[1], width, table.shape[1], *(step for x in (q, k, v) for step in x.stride()[:2])]
    call = np.array([*sizes, window or 0, table.ctypes.data, lengths.ctypes.data], np.int64)
    _attend(
        DTYPES[q.dtype], call.ctypes.data, scale, softcap or 0.0, q, k, v, keys, values,
        *((None, None) if scales is None else scales), out,
    )  # fmt: skip
    return out
