"""Keys and values of what was already read, so that each new token costs one token's work.

They lie in pages of PAGE tokens, and a text has a list of pages: so texts of unlike lengths waste nothing, texts that
begin alike can have the same pages, and a text that is over is forgotten by forgetting its list. `Prefill` and `Decode`
are two more views: the same network reads a packed row of tokens into the pages, then one token per text, without a
branch for either. Kwon et al. 2023 (PagedAttention).

With `kv="int8"` each key and each value is kept as E numbers of 8 bits and one scale: half the memory of 16 bits.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lorikeet.kernels import paged_attention as compiled
from lorikeet.kernels.paged_attention import PAGE as PAGE
from lorikeet.models.causal_lm import Shape

Kv = Literal["auto", "int8"]
NOBODY = 0  # the page of rows that are computed for nothing
LINE = 64  # bytes at once from memory


@dataclass
class Place:
    """Where one text lies: its pages in order, and how many of its tokens are there."""

    pages: list[int]
    length: int = 0


def pages_for(tokens: int) -> int:
    """How many pages so many tokens take."""
    return -(-tokens // PAGE)


class KvCache:
    """Keys and values [layers, pages, K, PAGE, E], NOBODY's page among them; with int8 their scales [layers, pages, K,
    PAGE] float32."""

    def __init__(self, shape: Shape, pages: int, dtype: torch.dtype, device: torch.device, kv: Kv = "auto"):
        self.dtype, self.pages = dtype, pages
        sizes = (shape.layers, pages, shape.kv_heads, PAGE, shape.head_dim)
        kept = torch.int8 if kv == "int8" else dtype
        self.keys, self.values = _room(sizes, kept, device), _room(sizes, kept, device)
        self.key_scales = self.value_scales = None
        if kv == "int8":
            self.key_scales = _room(sizes[:-1], torch.float32, device)
            self.value_scales = _room(sizes[:-1], torch.float32, device)

    @staticmethod
    def bytes_of(shape: Shape, texts: int, tokens: int, dtype: torch.dtype, kv: Kv = "auto") -> int:
        """What so many texts of so many tokens take."""
        vector = shape.head_dim + 4 if kv == "int8" else shape.head_dim * dtype.itemsize
        return 2 * shape.layers * texts * shape.kv_heads * pages_for(tokens) * PAGE * vector

    @property
    def nbytes(self) -> int:
        """What all pages take. On the CPU memory is taken when a page is first written."""
        tensors = (self.keys, self.values, self.key_scales, self.value_scales)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def scales(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """A layer's, of keys and of values."""
        if self.key_scales is None or self.value_scales is None:
            return None
        return self.key_scales[layer], self.value_scales[layer]

    def write(self, layer: int, pages: Tensor, within: Tensor, k: Tensor, v: Tensor) -> None:
        """Keep k and v [T, K, E] at the tokens `within` [T] of `pages` [T]."""
        if compiled.keeps(k, v, self.keys):
            compiled.write(k, v, self.keys[layer], self.values[layer], self.scales(layer), pages, within)
            return
        for kept, scales, new in ((self.keys, self.key_scales, k), (self.values, self.value_scales, v)):
            if scales is not None:
                new, scale = _rounded(new)
                scales[layer][pages, :, within] = scale
            kept[layer][pages, :, within] = new

    def tokens(self, layer: int, pages: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
        """What was kept there: keys and values [T, K, E]."""
        found = []
        for kept, scales in ((self.keys, self.key_scales), (self.values, self.value_scales)):
            one = kept[layer][pages, :, within]
            found.append(one if scales is None else _plain(one, scales[layer][pages, :, within], self.dtype))
        return found[0], found[1]

    def texts(self, layer: int, table: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, K, n * PAGE, E] of the pages in a table [B, n]."""
        found = []
        for kept, scales in ((self.keys, self.key_scales), (self.values, self.value_scales)):
            one = kept[layer][table]
            one = one if scales is None else _plain(one, scales[layer][table], self.dtype)
            found.append(one.transpose(1, 2).flatten(2, 3))
        return found[0], found[1]

    def copy(self, source: int, target: int) -> None:
        """Make page `target` like page `source`."""
        for kept in (self.keys, self.values, self.key_scales, self.value_scales):
            if kept is not None:
                kept[:, target] = kept[:, source]


def slots(place: Place, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """(page, token within the page) of a text's tokens from `start` to `stop`."""
    at = np.arange(start, stop)
    return np.asarray(place.pages, np.int64)[at // PAGE], at % PAGE


def _rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., E] as int8 [..., E] and scales [...]."""
    wide = x.float()
    scale = wide.abs().amax(-1) / 127
    return (wide / scale.clamp_min(1e-30)[..., None]).round_().to(torch.int8), scale


def _plain(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (x * scale[..., None]).to(dtype)


def _room(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. On the CPU the system gives the memory of what is written, when it is. Raises MemoryError or torch's own
    where there is none."""
    count = math.prod(sizes) * dtype.itemsize
    if count > sys.maxsize - LINE:
        raise MemoryError(f"{count} bytes are more than a machine can address")
    if device.type != "cpu":
        return torch.zeros(sizes, dtype=dtype, device=device)
    room = np.zeros(count + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    return torch.from_numpy(room)[start : start + count].view(dtype).view(sizes)
