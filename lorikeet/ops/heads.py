"""From one qkv tensor to the queries, keys and values of attention: heads normalised (Qwen 3, Gemma 3) and rotated.

One op, because its gradient is then written into one buffer: slicing q, k and v out of qkv would cost three buffers of
zeros and their sum on the way back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lorikeet import kernels
from lorikeet.kernels import rope as compiled
from lorikeet.kernels.rope import HeadNorms
from lorikeet.ops.norm import Normed, reference_rms_norm
from lorikeet.ops.rope import reference_rotate, rotated


def reference_split_heads(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, norms: HeadNorms | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition. qkv [T, H + 2K, E] -> q [T, H, E], k and v [T, K, E]."""
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    if norms is not None:
        q = reference_rms_norm(q, norms.q, norms.eps, norms.offset)
        k = reference_rms_norm(k, norms.k, norms.eps, norms.offset)
    return reference_rotate(q, cos, sin), reference_rotate(k, cos, sin), v


class SplitHeadsFunction(torch.autograd.Function):
    """Without norms the rotation happens inside qkv, which nobody else may hold on to."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, norms: HeadNorms | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.norms, ctx.heads = norms, heads
        if kernels.serves(qkv, cos) and qkv.is_contiguous() and qkv.shape[2] <= compiled.MOST_WIDTH:
            out, scales = compiled.forward(qkv, cos, sin, heads, kv_heads, norms)
        elif norms is None:
            out, scales = qkv, None
            turned = qkv[:, : heads + kv_heads]
            turned.copy_(rotated(turned, cos, sin))
        else:
            q, k, _ = qkv.split([heads, kv_heads, kv_heads], dim=1)
            (q, q_scale), (k, k_scale) = _normed(norms, q, k)
            out = rotated(torch.cat([q, k], dim=1), cos, sin)
            scales = torch.cat([q_scale, k_scale], dim=1)
        ctx.save_for_backward(cos, sin, None if norms is None else qkv, scales)
        return out[:, :heads], out[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dq, dk, dv), norms, heads = grads, ctx.norms, ctx.heads
        cos, sin, qkv, scales = ctx.saved_tensors
        kv_heads = dk.shape[1]
        if kernels.serves(dq, dk, dv, cos) and dq.shape[2] <= compiled.MOST_WIDTH:
            return compiled.backward(dq, dk, dv, cos, sin, qkv, norms, scales), None, None, None, None, None
        dqkv = dq.new_empty(dq.shape[0], heads + 2 * kv_heads, dq.shape[2])
        dqk = rotated(torch.cat([dq, dk], dim=1), cos, -sin)
        if norms is not None:
            dqk = torch.cat(
                [
                    _norm(norms, weight).backward(_rows(x), _rows(scale), _rows(grad))[0].view(grad.shape)
                    for weight, x, scale, grad in zip(
                        (norms.q, norms.k),
                        qkv.split([heads, kv_heads, kv_heads], dim=1),
                        scales[..., None].split([heads, kv_heads], dim=1),
                        dqk.split([heads, kv_heads], dim=1),
                    )
                ],
                dim=1,
            )
        dqkv[:, : heads + kv_heads], dqkv[:, heads + kv_heads :] = dqk, dv
        return dqkv, None, None, None, None, None


def _normed(norms: HeadNorms, *heads: Tensor) -> list[tuple[Tensor, Tensor]]:
    found = []
    for x, weight in zip(heads, (norms.q, norms.k)):
        y, scale = _norm(norms, weight).forward(_rows(x))
        assert scale is not None
        found.append((y.view(x.shape), scale.view(x.shape[:2])))
    return found


def _norm(norms: HeadNorms, weight: Tensor) -> Normed:
    return Normed(weight, norms.eps, norms.offset)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def split_heads(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, norms: HeadNorms | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [T, H + 2K, E], cos and sin of `Rope.table` -> q [T, H, E], k and v [T, K, E], ready for attention.

    Without norms qkv is overwritten. Norm weights get no gradient."""
    return SplitHeadsFunction.apply(qkv, cos, sin, heads, kv_heads, norms)
