"""The face of weight_gradient.cpp: a weight's gradient (AMX or AVX-512), in float32 and straight to where it belongs.

PyTorch's matmul of bfloat16 gives bfloat16: the gradient would be rounded, then widened, then added, each a pass over
memory as large as the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from lorikeet.kernels import Kernel, linear
from lorikeet.kernels.counting import count

_weight_gradient = Kernel("weight_gradient", "weight_gradient")


def serves(dy: Tensor, x: Tensor) -> bool:
    """Whether dy [T, out] and x [T, in] are for this kernel."""
    return x.dtype == dy.dtype and dy.stride(1) == 1 and linear.serves(x, dy.shape[1], x.shape[1])


def weight_gradient(dy: Tensor, x: Tensor, into: Tensor | None = None) -> Tensor:
    """dy^T x [out, in] in float32; added to `into` (contiguous), where that is given, which is then returned."""
    (size, width), inside = dy.shape, x.shape[1]
    out = torch.empty(width, inside, dtype=torch.float32, device=x.device) if into is None else into
    count("weight_gradient", 2.0 * size * width * inside)
    _weight_gradient(size, width, inside, dy, dy.stride(0), x, x.stride(0), int(into is not None), out)
    return out
