"""RMSNorm (Zhang and Sennrich 2019): x / rms(x) * weight, computed in float32 and rounded once to x's dtype.

Order as in Llama: the normalised value is rounded to x's dtype before it meets the weight. Gemma keeps its weights
less one (`offset` 1) and rounds after the product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorikeet import kernels
from lorikeet.kernels import norm as compiled

BLOCK_BYTES = 1 << 20  # of a copy in float32, in plain PyTorch


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
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        scale = torch.empty(len(x), 1, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        weight = self._weight(scale.dtype) if self.offset else self.weight.to(x.dtype)
        for part in _blocks(x, scale.dtype):
            wide = x[part].to(scale.dtype, copy=True)
            squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
            torch.rsqrt(squares.div_(x.shape[1]).add_(self.eps), out=scale[part])
            self._weighted(wide.mul_(scale[part]), weight, y[part])
        return y, scale

    def backward(
        self, x: Tensor, scale: Tensor | None, dy: Tensor, *, again: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """dx, and with `again` the output once more."""
        assert scale is not None
        if kernels.serves(x, self.weight, dy) and x.stride(-1) == 1:
            y = self.forward(x)[0] if again else None
            return compiled.backward(x, self.weight, scale, self.offset, dy), y
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        y = torch.empty_like(dx) if again else None
        wide = self._weight(scale.dtype)
        weight = wide if self.offset else self.weight.to(x.dtype)
        for part in _blocks(x, scale.dtype):
            normal, dnormal = x[part].to(scale.dtype, copy=True).mul_(scale[part]), dy[part].to(scale.dtype) * wide
            along = torch.linalg.vecdot(dnormal, normal)[:, None].div_(x.shape[1])
            dx[part] = dnormal.addcmul_(normal, along, value=-1).mul_(scale[part])
            if y is not None:
                self._weighted(normal, weight, y[part])
        return dx, y

    def _weight(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to(dtype) + self.offset

    def _weighted(self, normal: Tensor, weight: Tensor, y: Tensor) -> None:
        """The output of normalised values, which may be overwritten: see the order of rounding at the top."""
        if self.offset:
            y.copy_(normal.mul_(weight))
        else:
            y.copy_(normal)
            y.mul_(weight)

    def weight_gradient(self, x: Tensor, scale: Tensor | None, dy: Tensor) -> Tensor:
        """The gradient of the weight [D], for the output's dy [N, D]."""
        assert scale is not None
        return (dy * (x.to(scale.dtype) * scale)).sum(0).to(self.weight.dtype)


def _blocks(x: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    """Rows of x [N, D] at a time: all passes over a block in `dtype` then find it in cache."""
    rows = max(1, BLOCK_BYTES // (dtype.itemsize * x.shape[1])) if x.device.type == "cpu" else max(1, len(x))
    return (slice(start, start + rows) for start in range(0, len(x), rows))


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
