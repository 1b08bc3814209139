"""The grid on which GPTQ puts a group of weights, and rounding to its nearest point.

A group's numbers w become codes q in 0 .. 2^bits - 1 with  w ~ (q - zero) * scale. Symmetric: zero is the middle, and
the grid reaches the largest |w|. Not symmetric: it reaches from the smallest to the largest w, and always holds 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST, _LARGEST = 2.0**-24, 65504.0  # of float16, in which scales are kept
_SHRINKS = 20  # how many narrower grids the search tries


def grid(weight: Tensor, bits: int, *, sym: bool, search: bool = False) -> tuple[Tensor, Tensor]:
    """(scales, zeros) [n] float32 of weight [n, group], each row a group. Scales are float16 numbers, zeros whole.

    `search`: take the narrower grid with the smallest sum of |error|^2.4, where one beats the full range (it clips
    what lies far out)."""
    low, high = weight.amin(-1).clamp(max=0), weight.amax(-1).clamp(min=0)
    best = _between(low, high, bits, sym)
    if not search:
        return best
    least = _penalty(weight, *best, bits)
    for i in range(1, _SHRINKS):
        part = 1 - i / 25
        scales, zeros = _between(low * part, high * part, bits, sym)
        error = _penalty(weight, scales, zeros, bits)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, scales, best[0]), torch.where(better, zeros, best[1])
    return best


def _between(low: Tensor, high: Tensor, bits: int, sym: bool) -> tuple[Tensor, Tensor]:
    """The grid that reaches from `low` to `high`."""
    steps = (1 << bits) - 1
    scales = 2 * torch.maximum(-low, high) / steps if sym else (high - low) / steps
    scales = torch.where(scales == 0, 1.0, scales).clamp(_SMALLEST, _LARGEST).half().float()
    zeros = torch.full_like(low, 1 << bits - 1) if sym else torch.round(-low / scales).clamp(0, steps)
    return scales, zeros


def _penalty(weight: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
    """[n]: large errors count more than their square, as in the original's search."""
    scales, zeros = scales[:, None], zeros[:, None]
    return ((to_codes(weight, scales, zeros, bits) - zeros) * scales - weight).abs().pow(2.4).sum(-1)


def to_codes(weight: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
    """The nearest codes, as whole float32 numbers; scales and zeros broadcast against weight."""
    return torch.clamp(torch.round(weight / scales) + zeros, 0, (1 << bits) - 1)


def round_to_nearest(weight: Tensor, bits: int, group_size: int, *, sym: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(codes [n, in], zeros [n, groups], both uint8, scales [n, groups] fp16) of weight [n, in], groups in order."""
    codes, zeros, scales = [], [], []
    for part in weight.float().split(group_size, dim=1):
        scale, zero = grid(part, bits, sym=sym)
        codes.append(to_codes(part, scale[:, None], zero[:, None], bits).to(torch.uint8))
        zeros.append(zero.to(torch.uint8))
        scales.append(scale.half())
    return torch.cat(codes, 1), torch.stack(zeros, 1), torch.stack(scales, 1)
