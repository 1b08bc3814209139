"""RMSNorm (Zhang and Sennrich 2019): x / rms(x) * weight, computed in float32 and rounded once to x's dtype.

Order as in Llama: the normalised value is rounded to x's dtype before it meets the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def reference_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The definition. x [T, D], weight [D] -> [T, D]."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normal.to(x.dtype)


class RmsNormFunction(torch.autograd.Function):
    """Keeps x and one number per token; the plain version keeps three copies of x in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype) * weight.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, weight, scale = ctx.saved_tensors
        normal = x.to(scale.dtype) * scale
        dweight = (dy * normal).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        dnormal = dy * weight.to(scale.dtype)
        dx = dnormal.sub_(normal * (dnormal * normal).mean(-1, keepdim=True)).mul_(scale)
        return dx.to(x.dtype), dweight, None


class RmsNorm(nn.Module):
    """RMSNorm with a weight [D]."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype, device=device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return RmsNormFunction.apply(x, self.weight, self.eps)
