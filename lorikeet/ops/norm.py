"""RMSNorm (Zhang and Sennrich 2019): x / rms(x) * weight, computed in float32 and rounded once to x's dtype.

Order as in Llama: the normalised value is rounded to x's dtype before it meets the weight. Gemma keeps its weights
less one (`offset` 1) and rounds after the product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorikeet import kernels
from lorikeet.kernels import norm as compiled


def reference_rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """The definition. x [..., D], weight [D] -> [..., D]."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if offset:
        return (normal * (offset + weight.to(normal.dtype))).to(x.dtype)
    return weight * normal.to(x.dtype)


@dataclass(frozen=True)
class Normed:
    """A norm as what comes before a linear (`lora_linear`'s prologue): x [N, D], weight [D]. Keeps x and one number
    per row; the plain version keeps three copies of x in float32. Who wants the weight's gradient asks for it."""

    weight: Tensor
    eps: float
    offset: float = 0.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output, and 1 / rms [N, 1], to be kept."""
        if kernels.serves(x, self.weight) and x.stride(-1) == 1:
            return compiled.forward(x, self.weight, self.eps, self.offset)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.offset:
            return (wide * scale).mul_(self.weight.to(scale.dtype) + self.offset).to(x.dtype), scale
        return (wide * scale).to(x.dtype) * self.weight.to(x.dtype), scale

    def backward(
        self, x: Tensor, scale: Tensor | None, dy: Tensor, *, again: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """dx, and with `again` the output once more."""
        assert scale is not None
        y = self.forward(x)[0] if again else None
        if kernels.serves(x, self.weight, dy) and x.stride(-1) == 1:
            return compiled.backward(x, self.weight, scale, self.offset, dy), y
        normal = x.to(scale.dtype) * scale
        dnormal = dy * (self.weight.to(scale.dtype) + self.offset)
        dx = dnormal.sub_(normal * (dnormal * normal).mean(-1, keepdim=True)).mul_(scale)
        return dx.to(x.dtype), y

    def weight_gradient(self, x: Tensor, scale: Tensor | None, dy: Tensor) -> Tensor:
        """The gradient of the weight [D], for the output's dy [N, D]."""
        assert scale is not None
        return (dy * (x.to(scale.dtype) * scale)).sum(0).to(self.weight.dtype)


class RmsNormFunction(torch.autograd.Function):
    """A norm that stands alone, with a gradient for its weight where that trains."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        ctx.norm = Normed(weight.detach(), eps, offset)
        y, scale = ctx.norm.forward(x.reshape(-1, x.shape[-1]))
        ctx.save_for_backward(x, scale)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = (grad.reshape(-1, grad.shape[-1]) for grad in grads)
        saved, scale = ctx.saved_tensors
        x = saved.reshape(-1, saved.shape[-1])
        dweight = ctx.norm.weight_gradient(x, scale, dy) if ctx.needs_input_grad[1] else None
        dx = ctx.norm.backward(x, scale, dy)[0].view(saved.shape) if ctx.needs_input_grad[0] else None
        return dx, dweight, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """x [..., D], weight [D] -> [..., D], normalised over the last dimension."""
    return RmsNormFunction.apply(x, weight, eps, offset)
