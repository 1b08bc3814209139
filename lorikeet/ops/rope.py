"""Rotary position embedding (Su et al. 2021) with the scalings that Llama-like models use.

Pairs are the two halves of a head ("rotate half", Hugging Face's layout). Frequencies follow transformers'
`modeling_rope_utils`: linear and dynamic NTK (kaiokendev, bloc97), llama3 (Llama 3.1), yarn (Peng et al. 2023),
longrope (Ding et al. 2024; Phi-3). A head may be rotated in its first part only (`rotary_dim`; Phi-4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lorikeet.base.errors import ModelError

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class Rope:
    """What a checkpoint says about its rotary embedding. `scaling` is config.json's rope_scaling / rope_parameters."""

    rotary_dim: int  # of a head's E: how many are rotated, from the first on
    theta: float
    max_position: int  # max_position_embeddings: where dynamic scaling begins
    scaling: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ModelError(f"unknown rope scaling '{self.kind}'", given=self.scaling, allowed=" ".join(KINDS))
        try:
            frequencies, _ = self.frequencies(self.max_position)
            fits = len(frequencies) == self.rotary_dim // 2 and bool(frequencies.isfinite().all())
        except (KeyError, TypeError, ZeroDivisionError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"the config's rope scaling '{self.kind}' lacks a setting or has an odd one",
                given=f"{type(error).__name__} {error} in {self.scaling}"[:200],
                try_="the config.json that belongs to the weights",
            ) from error
        if not fits:
            raise ModelError(
                f"the config's rope scaling '{self.kind}' does not fit the heads",
                given=f"{len(frequencies)} frequencies for {self.rotary_dim} rotated dimensions",
            )

    @property
    def kind(self) -> str:
        return self.scaling.get("rope_type") or self.scaling.get("type") or "default"

    def frequencies(self, length: int) -> tuple[Tensor, float]:
        """Radians per position [rotary_dim / 2] float32, and the factor on cos and sin, for texts of `length` tokens
        (which matters to dynamic and longrope only)."""
        scaling, half = self.scaling, torch.arange(0, self.rotary_dim, 2, dtype=torch.int64).float() / self.rotary_dim
        theta = self.theta
        if self.kind == "dynamic" and length > self.max_position:
            grown = scaling["factor"] * length / self.max_position - (scaling["factor"] - 1)
            theta *= grown ** (self.rotary_dim / (self.rotary_dim - 2))
        plain = 1.0 / theta**half
        if self.kind == "linear":
            return plain / scaling["factor"], 1.0
        if self.kind == "llama3":
            return _llama3(plain, scaling, self.max_position), 1.0
        if self.kind == "yarn":
            return _yarn(plain, self)
        if self.kind == "longrope":
            return _longrope(plain, self, length)
        return plain, 1.0

    def table(self, positions: Tensor, dtype: torch.dtype, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """cos and sin [T, 1, rotary_dim] in `dtype` for int64 positions [T].

        `lengths` [T]: how long the text of each token is, for dynamic and longrope (by default, all are one text)."""
        same = self.unchanged_within()
        if same is None:
            angles, factor = self._angles(positions, 0)
        else:
            if lengths is None:
                lengths = (positions.max() + 1).expand_as(positions)
            angles = torch.empty(len(positions), self.rotary_dim // 2, device=positions.device)
            lengths = lengths.clamp_min(same)  # short texts are all alike
            for length in lengths.unique().tolist():
                mine = lengths == length
                angles[mine], factor = self._angles(positions[mine], int(length))
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)

    def unchanged_within(self) -> int | None:
        """Texts up to so many tokens all have the same frequencies; None: texts of any length."""
        if self.kind == "longrope":
            return int(self.scaling.get("original_max_position_embeddings") or self.max_position)
        return self.max_position if self.kind == "dynamic" else None

    def _angles(self, positions: Tensor, length: int) -> tuple[Tensor, float]:
        frequencies, factor = self.frequencies(length)
        return positions[:, None].float() * frequencies.to(positions.device), factor


def _llama3(plain: Tensor, scaling: dict[str, Any], max_position: int) -> Tensor:
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    original = scaling.get("original_max_position_embeddings") or max_position
    wavelength = 2 * math.pi / plain
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * plain / factor + smooth * plain
    scaled = torch.where(wavelength > original / low, plain / factor, plain)
    between = (wavelength <= original / low) & (wavelength >= original / high)
    return torch.where(between, blended, scaled)


def _longrope(plain: Tensor, rope: Rope, length: int) -> tuple[Tensor, float]:
    """One set of factors for texts within the original context, another for longer ones."""
    scaling = rope.scaling
    original = scaling.get("original_max_position_embeddings") or rope.max_position
    factors = torch.tensor(scaling["long_factor" if length > original else "short_factor"], dtype=torch.float32)
    amplitude = scaling.get("attention_factor")
    if amplitude is None:
        # the config's own factor, where it has one, counts before the ratio of the two contexts
        grown = scaling.get("factor") or rope.max_position / original
        amplitude = 1.0 if grown <= 1 else math.sqrt(1 + math.log(grown) / math.log(original))
    return plain / factors, float(amplitude)


def _yarn(plain: Tensor, rope: Rope) -> tuple[Tensor, float]:
    scaling, dim = rope.scaling, rope.rotary_dim
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
    """The definition. x [T, H, E], cos and sin [T, 1, rotary_dim] -> [T, H, E]."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-second, first], dim=-1) * sin, rest], dim=-1)


class RotateFunction(torch.autograd.Function):
    """A rotation's gradient is the rotation back: nothing but cos and sin is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return rotated(grads[0], cos, -sin), None, None


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` without a gradient of its own; a new tensor."""
    half, turned = cos.shape[-1] // 2, cos.shape[-1]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    first, second, c, s = x[..., :half], x[..., half:turned], cos[..., :half], sin[..., :half]
    torch.mul(first, c, out=out[..., :half]).addcmul_(second, s, value=-1)
    torch.mul(second, c, out=out[..., half:turned]).addcmul_(first, s)
    out[..., turned:] = x[..., turned:]
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [T, H, E] by the angles of `Rope.table`."""
    return RotateFunction.apply(x, cos, sin)
