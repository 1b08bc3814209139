"""RMSNorm (Zhang and Sennrich 2019): x / rms(x) * weight, computed in float32 and rounded once to x's dtype.

Order as in Llama: the normalised value is rounded to x's dtype before it meets the weight. Gemma keeps its weights
less one (`offset` 1) and rounds after the product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def reference_rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """The definition. x [..., D], weight [D] -> [..., D]."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if offset:
        return (normal * (offset + weight.to(normal.dtype))).to(x.dtype)
    return weight * normal.to(x.dtype)


class RmsNormFunction(torch.autograd.Function):
    """Keeps x and one number per token; the plain version keeps three copies of x in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        ctx.offset = offset
        if offset:
            return (wide * scale).mul_(weight.to(scale.dtype) + offset).to(x.dtype)
        return (wide * scale).to(x.dtype) * weight.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, weight, scale = ctx.saved_tensors
        normal = x.to(scale.dtype) * scale
        dweight = (dy * normal).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        dnormal = dy * (weight.to(scale.dtype) + ctx.offset)
        dx = dnormal.sub_(normal * (dnormal * normal).mean(-1, keepdim=True)).mul_(scale)
        return dx.to(x.dtype), dweight, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """x [..., D], weight [D] -> [..., D], normalised over the last dimension."""
    return RmsNormFunction.apply(x, weight, eps, offset)
