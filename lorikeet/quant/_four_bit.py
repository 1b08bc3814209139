"""Weights in 4 bits: a block of values shares a scale, and each value is one of 16 numbers times it.

    absmax = max |w| of a block      code = the nearest of the table's 16 to w / absmax      w' = table[code] * absmax

The bytes are bitsandbytes' (Dettmers et al. 2023, QLoRA): two codes in a byte, the first in the high half, float32
scales. `double_quant` keeps the scales in 8 bits too: a float32 offset (their mean) and, for 256 of them, one scale
again, with the codes of bitsandbytes' dynamic map.

One difference: rows stand alone, so that a group is written member by member, an expert is read by itself, and rows
shard. Where the width is no multiple of `block_size`, the last block of each row is shorter (bitsandbytes' blocks run
on into the next row). The second statistics are per row, too: bitsandbytes has one offset for the whole tensor and a
scale for 256 scales of any rows. That costs 64 bits a row: 0.016 bits a weight at a width of 4096, 0.11 at 576; the
scales are nearer for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lorikeet.base.errors import CheckpointError
from lorikeet.base.extras import require
from lorikeet.base.installed import version
from lorikeet.kernels import dequantise as kernel
from lorikeet.kernels import few_rows
from lorikeet.quant import _bitsandbytes as stored
from lorikeet.quant._contract import FrozenWeight
from lorikeet.quant._targets import Quantised

AT_ONCE = 1 << 20  # values that plain PyTorch takes at a time: its indices take 8 bytes each
SECOND_BLOCK = 256  # scales that share a second scale
SMALLEST = 1e-38  # a scale is divided by at least this; a block of zeros has the scale 0 and the codes of 0


class FourBit(Quantised):
    """Base of the kinds with a table of 16 numbers."""

    block_size: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = Field(
        64, description="Weights that share a scale; a block ends with its row."
    )
    double_quant: bool = Field(
        False, description="Keep the scales in 8 bits as well: 0.37 bits less for each weight at block_size 64."
    )
    kind: str
    table: ClassVar[Tensor]  # [16] float32 on the CPU: the number of each code, within -1 and 1

    def empty(self, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device) -> FrozenWeight:
        """See `Quant.empty`."""
        return FourBitWeight(out_features, in_features, self, device, dtype)

    @classmethod
    def stored_as(cls, settings: Mapping[str, Any], source: object) -> FourBit | None:
        """See `Quant.stored_as`: a folder of bitsandbytes. Doubly quantised scales are read as what they stand for."""
        if stored.kind_of(settings, source) != cls.model_fields["kind"].default:
            return None
        return cls.model_validate({"block_size": stored.block_size(settings, source)})

    def stored_settings(self, dtype: torch.dtype) -> dict[str, Any]:
        """See `Quant.stored_settings`."""
        return stored.settings(self.kind, dtype, self.block_size)


class FourBitWeight(FrozenWeight):
    """codes [out, in / 2] uint8, absmax [out, blocks] float32; double-quantised: absmax [out, blocks] uint8,
    scale [out, blocks / 256] and offset [out, 1] float32."""

    def __init__(self, out_features: int, in_features: int, options: FourBit, device: torch.device, dtype: torch.dtype):
        super().__init__()
        self.made_in = dtype  # of the network
        self.out_features, self.in_features = out_features, in_features
        self.kind, self.block_size, self.table = options.kind, options.block_size, options.table
        blocks, double = -(-in_features // options.block_size), options.double_quant

        def kept(width: int, dtype: torch.dtype) -> nn.Parameter:
            return nn.Parameter(torch.empty(out_features, width, dtype=dtype, device=device), requires_grad=False)

        self.codes = kept(-(-in_features // 2), torch.uint8)
        self.absmax = kept(blocks, torch.uint8 if double else torch.float32)
        self.scale = kept(-(-blocks // SECOND_BLOCK), torch.float32) if double else None
        self.offset = kept(1, torch.float32) if double else None

    @torch.no_grad()
    def write(self, start: int, weight: Tensor) -> None:
        """See `FrozenWeight.write`. Raises CheckpointError for numbers that are not finite."""
        step = max(1, AT_ONCE // self.in_features)
        for at in range(0, len(weight), step):
            part = weight[at : at + step]
            rows = slice(start + at, start + at + len(part))
            codes, absmax = quantise(part, self.table, self.block_size)
            self.codes[rows].copy_(codes)
            if self.scale is None or self.offset is None:
                self.absmax[rows].copy_(absmax)
            else:
                for kept, made in zip((self.absmax, self.scale, self.offset), quantise_scales(absmax)):
                    kept[rows].copy_(made)

    @torch.no_grad()
    def take(self, start: int, stop: int, parts: dict[str, Tensor]) -> None:
        """See `FrozenWeight.take`."""
        assert self.scale is None, "`stored_as` has scales in float32"
        shape, rows = (stop - start, self.in_features), slice(start, stop)
        how: dict[str, Any] = {"kind": self.kind, "block_size": self.block_size, "table": self.table}
        codes, absmax = stored.take_four(parts, shape, **how)
        self.codes[rows], self.absmax[rows] = codes, absmax

    def give(self, start: int, stop: int) -> dict[str, Tensor] | None:
        """See `FrozenWeight.give`: scales in float32, whatever they are kept in."""
        rows, how = slice(start, stop), (self.kind, self.block_size, self.made_in)
        return stored.give_four(self.codes[rows], self.scales(rows), self.in_features, self.table, *how)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """See `FrozenWeight.dense`: the product in float32, rounded once."""
        return self.rows(0, self.out_features, dtype)

    @torch.no_grad()
    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """See `FrozenWeight.rows`."""
        rows = slice(start, stop)
        made = kernel.four_bit(
            self.codes[rows],
            self.absmax[rows],
            self._second(rows),
            self.table,
            self.block_size,
            self.in_features,
            dtype,
        )
        if made is None:
            made = self._on_cuda(rows, dtype) if self.codes.is_cuda else None
        return self._plain(rows, dtype) if made is None else made

    def has_few_rows(self) -> bool:
        """See `FrozenWeight.has_few_rows`."""
        return True

    def few_rows(self, x: Tensor, z: Tensor | None, low: Tensor | None) -> Tensor:
        """See `FrozenWeight.few_rows`."""
        second = self._second(slice(None))
        return few_rows.four_bit(x, z, low, self.codes, self.absmax, second, self.table, self.block_size)

    def _second(self, rows: slice) -> tuple[Tensor, Tensor, Tensor] | None:
        """What the scales of these rows are made of, where they are quantised."""
        if self.scale is None or self.offset is None:
            return None
        return self.scale[rows], self.offset[rows], DYNAMIC_MAP

    def _plain(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """`rows` in plain PyTorch, some of them at a time."""
        out = torch.empty(rows.stop - rows.start, self.in_features, dtype=dtype, device=self.codes.device)
        step = max(1, AT_ONCE // self.in_features)
        for at in range(rows.start, rows.stop, step):
            part = slice(at, min(rows.stop, at + step))
            made = dequantise(self.codes[part], self.scales(part), self.table, self.block_size, self.in_features)
            out[part.start - rows.start : part.stop - rows.start].copy_(made)
        return out

    def _on_cuda(self, rows: slice, dtype: torch.dtype) -> Tensor | None:
        """`rows` by bitsandbytes' kernel, where it is installed and its blocks are ours. Never run on a GPU yet."""
        if self.in_features % self.block_size or version("bitsandbytes") is None:
            return None
        require("bitsandbytes", extra="bnb", needed_by="a faster kernel of 4-bit weights on CUDA")
        shape, scales = (rows.stop - rows.start, self.in_features), self.scales(rows).flatten()
        codes = self.codes[rows].view(-1, 1)
        made: Tensor = torch.ops.bitsandbytes.dequantize_4bit(codes, scales, self.block_size, self.kind, shape, dtype)
        return made

    def scales(self, rows: slice) -> Tensor:
        """The scales of these rows [n, blocks] float32."""
        if self.scale is None or self.offset is None:
            return self.absmax[rows]
        return dequantise_scales(self.absmax[rows], self.scale[rows], self.offset[rows])


def quantise(weight: Tensor, table: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """weight [n, in] -> codes [n, ceil(in / 2)] uint8 and absmax [n, blocks] float32. Raises CheckpointError for
    numbers that are not finite."""
    order = table.argsort(stable=True)
    ascending = table[order]
    bounds, order = (ascending[:-1] + ascending[1:]) / 2, order.to(torch.uint8)
    codes, absmax = kernel.quantise_four_bit(weight, bounds, order, block_size) or reference_quantise(
        weight, bounds.to(weight.device), order.to(weight.device), block_size
    )
    check_finite(absmax)
    return codes, absmax


def reference_quantise(weight: Tensor, bounds: Tensor, order: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """The definition. `bounds` [15]: the middles between neighbours of the ascending table; `order` [16]: their codes.

    The nearest number is told by which of the middles lie below."""
    rows, width = weight.shape
    blocks = -(-width // block_size)
    padded = F.pad(weight.float(), (0, blocks * block_size - width)).view(rows, blocks, block_size)
    absmax = padded.abs().amax(-1)
    scaled = (padded * (1 / absmax.clamp(min=SMALLEST))[..., None]).clamp_(-1, 1).view(rows, -1)
    codes = order[torch.bucketize(scaled, bounds, out_int32=True)[:, :width]]
    codes = F.pad(codes, (0, width % 2))
    return codes[:, ::2] << 4 | codes[:, 1::2], absmax


def dequantise(codes: Tensor, absmax: Tensor, table: Tensor, block_size: int, width: int) -> Tensor:
    """The inverse, [n, width] float32: the definition that kernels are compared with."""
    both = torch.stack((codes >> 4, codes & 15), dim=-1).flatten(1)[:, :width]
    values = table.to(codes.device)[both.int()]
    return values * absmax.repeat_interleave(block_size, dim=1)[:, :width]


def dynamic_map() -> Tensor:
    """bitsandbytes' signed 8-bit numbers [256], ascending (Dettmers 2016): 7 decades from 1e-6 to 1, each with twice
    the numbers of the one below."""
    numbers = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        middles = 10 ** (exponent - 6) * ((edges[:-1] + edges[1:]) / 2)
        numbers += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(numbers), dtype=torch.float32)


DYNAMIC_MAP = dynamic_map()


def quantise_scales(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """absmax [n, blocks] -> codes [n, blocks] uint8, scale [n, ceil(blocks / 256)] and offset [n, 1] float32."""
    offset = absmax.mean(1, keepdim=True)
    rows, blocks = absmax.shape
    count = -(-blocks // SECOND_BLOCK)
    beyond = F.pad(absmax - offset, (0, count * SECOND_BLOCK - blocks)).view(rows, count, SECOND_BLOCK)
    scale = beyond.abs().amax(-1)
    numbers = DYNAMIC_MAP.to(absmax.device)
    scaled = beyond / scale.clamp(min=SMALLEST)[..., None]
    codes = torch.bucketize(scaled, (numbers[:-1] + numbers[1:]) / 2, out_int32=True)
    return codes.to(torch.uint8).view(rows, -1)[:, :blocks], scale, offset


def dequantise_scales(codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """The inverse, [n, blocks] float32."""
    numbers = DYNAMIC_MAP.to(codes.device)[codes.int()]
    return numbers * scale.repeat_interleave(SECOND_BLOCK, dim=1)[:, : codes.shape[1]] + offset


def check_finite(absmax: Tensor) -> None:
    """Raise CheckpointError where a scale shows that a weight is NaN or infinite."""
    if not torch.isfinite(absmax).all():
        raise CheckpointError(
            "a weight holds numbers that are not finite, so it cannot be quantised",
            given="NaN or infinity",
            allowed="finite weights",
            try_="quant=none shows what the model says with them",
        )
