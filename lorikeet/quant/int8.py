"""int8 by rows: each row of a weight has one scale, its largest absolute value (LLM.int8()'s storage of weights).

    code = round(w * 127 / absmax)        w' = code * absmax / 127

The numbers are bitsandbytes' (`int8_vectorwise_quant`: `CB` and `SCB`). Activations stay as they are: no column of
theirs is cut out or rounded, so the gradient is that of a linear with the dequantised weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lorikeet.kernels import dequantise as kernel
from lorikeet.kernels import few_rows
from lorikeet.quant import _bitsandbytes as stored
from lorikeet.quant._contract import FrozenWeight
from lorikeet.quant._four_bit import AT_ONCE, check_finite
from lorikeet.quant._targets import Quantised

PER_CODE = 0.007874015718698502  # 1 / 127, as bitsandbytes writes it


class Int8(Quantised):
    """8 bits a weight and a scale for each row."""

    kind: Literal["int8"] = "int8"
    stored_parts: ClassVar[tuple[str, ...]] = stored.EIGHT_PARTS

    @classmethod
    def stored_as(cls, settings: Mapping[str, Any], source: object) -> Int8 | None:
        """See `Quant.stored_as`: a folder of bitsandbytes."""
        return cls() if stored.kind_of(settings, source) == "int8" else None

    def stored_settings(self, dtype: torch.dtype) -> dict[str, Any]:
        """See `Quant.stored_settings`."""
        return stored.settings("int8", dtype)

    def empty(self, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device) -> FrozenWeight:
        """See `Quant.empty`."""
        return Int8Weight(out_features, in_features, device)


class Int8Weight(FrozenWeight):
    """codes [out, in] int8, absmax [out, 1] float32."""

    def __init__(self, out_features: int, in_features: int, device: torch.device):
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        codes = torch.empty(out_features, in_features, dtype=torch.int8, device=device)
        absmax = torch.empty(out_features, 1, dtype=torch.float32, device=device)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.absmax = nn.Parameter(absmax, requires_grad=False)

    @torch.no_grad()
    def write(self, start: int, weight: Tensor) -> None:
        """See `FrozenWeight.write`. Raises CheckpointError for numbers that are not finite."""
        step = max(1, AT_ONCE // self.in_features)
        for at in range(0, len(weight), step):
            part = weight[at : at + step].float()
            rows = slice(start + at, start + at + len(part))
            absmax = part.abs().amax(1, keepdim=True)
            check_finite(absmax)
            self.codes[rows].copy_((part * torch.where(absmax > 0, 127 / absmax, 0)).round_())
            self.absmax[rows].copy_(absmax)

    @torch.no_grad()
    def take(self, start: int, stop: int, parts: dict[str, Tensor]) -> None:
        """See `FrozenWeight.take`."""
        codes, absmax = stored.take_eight(parts, (stop - start, self.in_features))
        self.codes[start:stop], self.absmax[start:stop] = codes, absmax

    def give(self, start: int, stop: int) -> dict[str, Tensor]:
        """See `FrozenWeight.give`."""
        return stored.give_eight(self.codes[start:stop], self.absmax[start:stop])

    def dense(self, dtype: torch.dtype) -> Tensor:
        """See `FrozenWeight.dense`: the product in float32, rounded once."""
        return self.rows(0, self.out_features, dtype)

    @torch.no_grad()
    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """See `FrozenWeight.rows`."""
        made = kernel.int8(self.codes[start:stop], self.absmax[start:stop], dtype)
        if made is not None:
            return made
        out = torch.empty(stop - start, self.in_features, dtype=dtype, device=self.codes.device)
        step = max(1, AT_ONCE // self.in_features)
        for at in range(start, stop, step):
            part = slice(at, min(stop, at + step))
            out[part.start - start : part.stop - start].copy_(dequantise(self.codes[part], self.absmax[part]))
        return out

    def has_few_rows(self) -> bool:
        """See `FrozenWeight.has_few_rows`."""
        return True

    def few_rows(self, x: Tensor, z: Tensor | None, low: Tensor | None) -> Tensor:
        """See `FrozenWeight.few_rows`."""
        return few_rows.int8(x, z, low, self.codes, self.absmax)


def dequantise(codes: Tensor, absmax: Tensor) -> Tensor:
    """codes [n, in], absmax [n, 1] -> [n, in] float32: the definition that kernels are compared with."""
    return codes.float() * absmax * PER_CODE
