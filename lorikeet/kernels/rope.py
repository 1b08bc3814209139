"""The face of rope.cpp: heads normalised and rotated, and the gradient of both, in one pass each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorikeet.kernels import DTYPES, Kernel

MOST_WIDTH = 1024  # rope.cpp's MOST

_forward, _backward = Kernel("rope", "rope_forward"), Kernel("rope", "rope_backward")


@dataclass(frozen=True)
class HeadNorms:
    """RMSNorm of each head of q and of k, with weights [E]."""

    q: Tensor
    k: Tensor
    eps: float
    offset: float


def forward(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, norms: HeadNorms | None
) -> tuple[Tensor, Tensor | None]:
    """qkv [T, H + 2K, E], cos and sin [T, 1, rotary] -> q and k together [T, H + K or more, E], and what `backward`
    needs of the norms. Without norms qkv itself is changed and given back."""
    tokens, _, width = qkv.shape
    scales = None
    out = qkv
    if norms is not None:
        out = torch.empty(tokens, heads + kv_heads, width, dtype=qkv.dtype, device=qkv.device)
        scales = torch.empty(tokens, heads + kv_heads, dtype=torch.float32, device=qkv.device)
    _forward(
        DTYPES[qkv.dtype], tokens, heads, kv_heads, width, cos.shape[-1], qkv, cos.contiguous(), sin.contiguous(),
        norms.q if norms else None, norms.k if norms else None,
        norms.eps if norms else 0.0, norms.offset if norms else 0.0,
        out, out.shape[1], scales,
    )  # fmt: skip
    return out, scales


def backward(
    dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor,
    qkv: Tensor | None, norms: HeadNorms | None, scales: Tensor | None,
) -> Tensor:  # fmt: skip
    """dq [T, H, E], dk and dv [T, K, E] -> dqkv [T, H + 2K, E]; qkv as it was before, where there are norms."""
    dq, dk, dv = (_heads_together(grad) for grad in (dq, dk, dv))
    tokens, heads, width = dq.shape
    dqkv = torch.empty(tokens, heads + 2 * dk.shape[1], width, dtype=dq.dtype, device=dq.device)
    _backward(
        DTYPES[dq.dtype], tokens, heads, dk.shape[1], width, cos.shape[-1],
        dq, dq.stride(0), dk, dk.stride(0), dv, dv.stride(0), cos.contiguous(), sin.contiguous(),
        qkv, norms.q if norms else None, norms.k if norms else None, norms.offset if norms else 0.0, scales, dqkv,
    )  # fmt: skip
    return dqkv


def _heads_together(x: Tensor) -> Tensor:
    """x [T, H, E] with the heads of a token side by side; slices of one buffer are taken as they are."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
