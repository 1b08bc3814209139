"""GPTQ's format (Frantar et al. 2022): 2, 3, 4 or 8 bits a weight, a scale and a zero point per group of inputs.

A model that `lorikeet quantize`, gptqmodel or AutoGPTQ wrote is taken over byte for byte; a dense one is rounded to
nearest, which is worse (see docs/gptq.md). What is kept is described in _gptq_layout.py.
"""

from __future__ import annotations

import json
import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr, ValidationError, field_validator
from torch import Tensor, nn

from lorikeet import kernels
from lorikeet.base.errors import CheckpointError
from lorikeet.kernels import dequantise_gptq as kernel
from lorikeet.kernels import few_rows
from lorikeet.quant import _gptq_layout as layout
from lorikeet.quant._contract import FrozenWeight
from lorikeet.quant._four_bit import AT_ONCE
from lorikeet.quant._gptq_round import round_to_nearest
from lorikeet.quant._targets import Quantised


class Gptq(Quantised):
    """GPTQ's grouped integers. A model that is stored so brings its own settings."""

    kind: Literal["gptq"] = "gptq"
    bits: Literal[2, 3, 4, 8] = Field(4, description="Bits of a weight.")
    group_size: int = Field(128, description="Inputs that share a scale and a zero point; -1: all inputs of a row.")
    sym: bool = Field(True, description="Put the zero point in the middle, where dense weights are rounded here.")
    checkpoint_format: Literal["gptq", "gptq_v2"] = Field(
        "gptq", description="What a model's files call a zero point of 8: 7 (gptq, also called v1) or 8 (gptq_v2)."
    )

    stored_parts: ClassVar[tuple[str, ...]] = layout.PARTS
    _sorted: bool = PrivateAttr(False)  # of a model's files: groups were formed in another order than the inputs'

    @field_validator("group_size")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError("needs a number above 0, or -1 for whole rows")
        return value

    @classmethod
    def stored_as(cls, settings: dict[str, Any], source: object) -> Gptq | None:
        """See `Quant.stored_as`: of config.json's quantization_config."""
        if settings.get("quant_method") != "gptq":
            return None
        older = "marlin" if settings.get("is_marlin_format") else "gptq"  # AutoGPTQ, before it named formats
        named = settings.get("checkpoint_format") or settings.get("format") or older
        given = {"checkpoint_format": named} | {key: settings[key] for key in ("bits", "group_size") if key in settings}
        given["sym"] = bool(settings.get("sym", True))
        changed = _changed(settings.get("dynamic") or {})
        if "bits" not in settings or changed is not None:
            raise CheckpointError(
                f"{source}: its quantization_config has no one number of bits for all linears",
                given=f"dynamic {changed}" if changed else f"no 'bits' among {' '.join(sorted(settings))}",
                allowed="one 'bits' and one 'group_size'",
            )
        try:
            made = cls.model_validate(given)
        except ValidationError as error:
            (key, *_), value = error.errors()[0]["loc"], error.errors()[0]["input"]
            allowed = {"bits": "2 3 4 8", "group_size": "-1, or above 0", "checkpoint_format": "gptq gptq_v2"}
            raise CheckpointError(
                f"{source}: GPTQ's format as read here has no such {key}",
                given=json.dumps(value),
                allowed=allowed.get(str(key)),
            ) from None
        meta = settings.get("meta")
        in_order = settings.get("static_groups") or (isinstance(meta, dict) and meta.get("static_groups"))
        made._sorted = bool(settings.get("desc_act")) and not in_order and made.group_size != -1
        return made

    def stored_settings(self, dtype: torch.dtype) -> dict[str, Any]:
        """See `Quant.stored_settings`."""
        named = {"bits": self.bits, "group_size": self.group_size, "sym": self.sym, "desc_act": False}
        return {"quant_method": "gptq", "checkpoint_format": self.checkpoint_format, **named}

    def empty(self, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device) -> FrozenWeight:
        return GptqWeight(self, out_features, in_features, device)


def _changed(dynamic: Any) -> str | None:
    """The first of gptqmodel's rules that quantises some linears otherwise ("-:..." leaves them dense), or None."""
    rules = dynamic.items() if isinstance(dynamic, dict) else [(dynamic, True)]
    return next((repr(rule) for rule, change in rules if change and not str(rule).startswith("-")), None)


class GptqWeight(FrozenWeight):
    """codes [out, bytes], zeros [out, groups], scales [out, groups], and the g_idx [in] of each run of rows (the
    members of a group, the experts of a mixture) whose inputs are not grouped in their order."""

    def __init__(self, quant: Gptq, out_features: int, in_features: int, device: torch.device):
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.bits, self.sym, self.v1 = quant.bits, quant.sym, quant.checkpoint_format == "gptq"
        self.group_size = in_features if quant.group_size == -1 else min(quant.group_size, in_features)
        self._sorted = quant._sorted
        groups = math.ceil(in_features / self.group_size)

        def kept(width: int, dtype: torch.dtype) -> nn.Parameter:
            return nn.Parameter(torch.empty(out_features, width, dtype=dtype, device=device), requires_grad=False)

        self.codes = kept(layout.packed_width(in_features, self.bits), torch.uint8)
        self.zeros, self.scales = kept(groups, torch.uint8), kept(groups, torch.float16)
        self._reordered: dict[int, int] = {}  # where runs of rows with a g_idx of their own start, and stop
        self._agree: bool | None = None  # whether all rows have one order; None: not looked at

    def dense(self, dtype: torch.dtype) -> Tensor:
        return self.rows(0, self.out_features, dtype)

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        out = torch.empty(stop - start, self.in_features, dtype=dtype, device=self.codes.device)
        compute = kernel.dequantise if kernels.serves(out) else layout.dequantise
        at = start
        while at < stop:
            until, g_idx = self._run(at)
            rows = slice(at, min(until, stop))
            kept = self.codes[rows], self.zeros[rows], self.scales[rows], g_idx
            compute(*kept, out[rows.start - start : rows.stop - start], bits=self.bits, group_size=self.group_size)
            at = rows.stop
        return out

    def has_few_rows(self) -> bool:
        """See `FrozenWeight.has_few_rows`: where all rows have one order of inputs."""
        if self._agree is None:
            self._agree = self._in_one_order()
        return self._agree

    def _in_one_order(self) -> bool:
        at, first = self._run(0)
        while at < self.out_features:
            at, g_idx = self._run(at)
            if first is None or g_idx is None or not torch.equal(first, g_idx):
                return False
        return True

    def few_rows(self, x: Tensor, z: Tensor | None, low: Tensor | None) -> Tensor:
        """See `FrozenWeight.few_rows`."""
        kept = self.codes, self.zeros, self.scales, self._run(0)[1]
        return few_rows.gptq(x, z, low, *kept, bits=self.bits, group_size=self.group_size)

    @torch.no_grad()
    def write(self, start: int, weight: Tensor) -> None:
        """See `FrozenWeight.write`: rounds to nearest."""
        self._order(start, len(weight), None)
        step = max(1, AT_ONCE // self.in_features)
        for i, part in enumerate(weight.split(step)):
            at = slice(start + i * step, start + i * step + len(part))
            codes, zeros, scales = round_to_nearest(part, self.bits, self.group_size, sym=self.sym)
            self.codes[at], self.zeros[at], self.scales[at] = layout.pack(codes, self.bits), zeros, scales

    @torch.no_grad()
    def take(self, start: int, stop: int, parts: dict[str, Tensor]) -> None:
        """See `FrozenWeight.take`."""
        if self._sorted:
            layout.check_named(parts)
        sizes = {"bits": self.bits, "group_size": self.group_size}
        codes, zeros, scales, g_idx = layout.from_parts(parts, stop - start, self.in_features, v1=self.v1, **sizes)
        self._order(start, stop - start, g_idx)
        self.codes[start:stop], self.zeros[start:stop], self.scales[start:stop] = codes, zeros, scales

    def expect(self, start: int, stop: int) -> None:
        """See `FrozenWeight.expect`: a g_idx."""
        if self._sorted and self.group_size < self.in_features:
            self._order(start, stop - start, torch.zeros(self.in_features, dtype=torch.int32))

    def give(self, start: int, stop: int) -> dict[str, Tensor] | None:
        """See `FrozenWeight.give`."""
        if not layout.storable(stop - start, self.in_features, self.bits):
            return None
        until, g_idx = self._run(start)
        assert until >= stop, "one member at a time"
        g_idx = layout.in_order(self.in_features, self.group_size) if g_idx is None else g_idx
        kept = self.codes[start:stop], self.zeros[start:stop], self.scales[start:stop]
        return layout.to_parts(*kept, g_idx, bits=self.bits, v1=self.v1)

    def _order(self, start: int, rows: int, g_idx: Tensor | None) -> None:
        """Remember the g_idx [in] of rows start..start+rows; None: in order."""
        self._agree = None
        if self._reordered.pop(start, None) is not None:
            delattr(self, f"g_idx_{start}")
        assert all(stop <= start or at >= start + rows for at, stop in self._reordered.items())
        if g_idx is not None:
            self._reordered[start] = start + rows
            self.register_buffer(f"g_idx_{start}", g_idx.to(self.codes.device))

    @property
    def reordered(self) -> bool:
        """Whether some inputs are grouped in another order than their own."""
        return bool(self._reordered)

    def _run(self, row: int) -> tuple[int, Tensor | None]:
        """The run that `row` lies in: where it ends, and its g_idx."""
        for start, stop in self._reordered.items():
            if start <= row < stop:
                return stop, getattr(self, f"g_idx_{start}")
        return min((start for start in self._reordered if start > row), default=self.out_features), None
