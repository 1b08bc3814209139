"""Rotary position embedding (Su et al. 2021) with the scalings that Llama-like models use.

Pairs are the two halves of a head ("rotate half", Hugging Face's layout). Frequencies follow transformers'
`modeling_rope_utils`: linear and dynamic NTK (kaiokendev, bloc97), llama3 (Llama 3.1), yarn (Peng et al. 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lorikeet.base.errors import ModelError

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """What a checkpoint says about its rotary embedding. `scaling` is config.json's rope_scaling / rope_parameters."""

    head_dim: int
    theta: float
    max_position: int  # max_position_embeddings: where dynamic scaling begins
    scaling: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ModelError(f"unknown rope scaling '{self.kind}'", given=self.scaling, allowed=" ".join(KINDS))

    @property
    def kind(self) -> str:
        return self.scaling.get("rope_type") or self.scaling.get("type") or "default"

    def frequencies(self, length: int) -> tuple[Tensor, float]:
        """Radians per position [E / 2] float32, and the factor on cos and sin. `length` matters to `dynamic` only."""
        scaling, half = self.scaling, torch.arange(0, self.head_dim, 2, dtype=torch.int64).float() / self.head_dim
        theta = self.theta
        if self.kind == "dynamic" and length > self.max_position:
            grown = scaling["factor"] * length / self.max_position - (scaling["factor"] - 1)
            theta *= grown ** (self.head_dim / (self.head_dim - 2))
        plain = 1.0 / theta**half
        if self.kind == "linear":
            return plain / scaling["factor"], 1.0
        if self.kind == "llama3":
            return _llama3(plain, scaling, self.max_position), 1.0
        if self.kind == "yarn":
            return _yarn(plain, self)
        return plain, 1.0

    def table(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [T, 1, E] in `dtype` for int64 positions [T]."""
        length = int(positions.max()) + 1 if self.kind == "dynamic" else 0
        frequencies, factor = self.frequencies(length)
        angles = positions[:, None].float() * frequencies.to(positions.device)
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def _llama3(plain: Tensor, scaling: dict[str, Any], max_position: int) -> Tensor:
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    original = scaling.get("original_max_position_embeddings") or max_position
    wavelength = 2 * math.pi / plain
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * plain / factor + smooth * plain
    scaled = torch.where(wavelength > original / low, plain / factor, plain)
    between = (wavelength <= original / low) & (wavelength >= original / high)
    return torch.where(between, blended, scaled)


def _yarn(plain: Tensor, rope: Rope) -> tuple[Tensor, float]:
    scaling, dim = rope.scaling, rope.head_dim
    original = scaling.get("original_max_position_embeddings") or rope.max_position
    factor = scaling.get("factor") or rope.max_position / original

    def attention(scale: float, mscale: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0

    amplitude = scaling.get("attention_factor")
    if amplitude is None:
        mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
        amplitude = attention(factor, mscale) / attention(factor, all_dim) if mscale and all_dim else attention(factor)

    def correction(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = correction(scaling.get("beta_fast") or 32), correction(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    keep = 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain / factor * (1 - keep) + plain * keep, float(amplitude)


def reference_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The definition. x [T, H, E], cos and sin [T, 1, E] -> [T, H, E]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class RotateFunction(torch.autograd.Function):
    """A rotation's gradient is the rotation back: nothing but cos and sin is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    first, second, c, s = x[..., :half], x[..., half:], cos[..., :half], sin[..., :half]
    torch.mul(first, c, out=out[..., :half]).addcmul_(second, s, value=-1)
    torch.mul(second, c, out=out[..., half:]).addcmul_(first, s)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [T, H, E] by the angles of `Rope.table`."""
    return RotateFunction.apply(x, cos, sin)
