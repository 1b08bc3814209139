"""The head and the loss in one: cross-entropy of `hidden @ W^T` at the trained positions, a chunk at a time.

Logits [N, V] are never built whole. Because the head's matmul meets nothing but this loss, each chunk's gradient is
known as soon as its softmax is: the forward pass makes the gradient too, and the backward pass only scales it.

    loss = sum_n w_n (logsumexp(l_n) - l_n[target_n])        dl_n = w_n (softmax(l_n) - onehot(target_n))
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 64 << 20  # of float32 logits at once


class HeadLoss(NamedTuple):
    """loss: scalar, the weighted sum, differentiable. token_losses [N] float32 and correct [N] bool: detached."""

    loss: Tensor
    token_losses: Tensor
    correct: Tensor


def reference_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """The definition. hidden [N, D], weight [V, D], targets [N], weights [N] -> the weighted sum of losses."""
    logits = full_logits(hidden, weight, bias=bias, scale=scale, softcap=softcap)
    losses = F.cross_entropy(logits, targets, reduction="none")
    return (losses * weights.to(losses.dtype)).sum()


def full_logits(
    hidden: Tensor, weight: Tensor, *, bias: Tensor | None = None, scale: float = 1.0, softcap: float | None = None
) -> Tensor:
    """[N, V] logits in at least float32, from a matmul in hidden's dtype."""
    logits = hidden @ weight.to(hidden.dtype).T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        logits = logits + bias
    logits = logits * scale if scale != 1.0 else logits
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


class LinearCrossEntropyFunction(torch.autograd.Function):
    """Returns (loss, token_losses, correct); only the loss is differentiable."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        scale: float,
        softcap: float | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, wide = len(targets), torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(count, dtype=wide, device=hidden.device)
        correct = torch.empty(count, dtype=torch.bool, device=hidden.device)
        wants = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2])
        dhidden = torch.empty_like(hidden) if wants[0] else None
        dweight = torch.zeros_like(weight, dtype=wide) if wants[1] else None
        dbias = torch.zeros_like(bias, dtype=wide) if wants[2] and bias is not None else None
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            logits = full_logits(hidden[part], weight, bias=bias, scale=scale, softcap=softcap)
            picked = logits.gather(1, targets[part, None])[:, 0]
            normaliser = torch.logsumexp(logits, dim=-1)
            losses[part] = normaliser - picked
            correct[part] = picked >= logits.amax(dim=-1)
            if not any(wants):
                continue
            slope = None if softcap is None else 1 - (logits / softcap) ** 2
            grad = logits.sub_(normaliser[:, None]).exp_()
            grad.scatter_add_(1, targets[part, None], torch.full_like(picked, -1.0)[:, None])
            grad.mul_((weights[part] * scale).to(wide)[:, None])
            if slope is not None:
                grad.mul_(slope)
            if dbias is not None:
                dbias.add_(grad.sum(0))
            narrow = grad.to(hidden.dtype)
            if dhidden is not None:
                dhidden[part] = narrow @ weight.to(hidden.dtype)
            if dweight is not None:
                dweight.add_(narrow.T @ hidden[part])
        ctx.save_for_backward(dhidden, dweight, dbias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(losses, correct)
        return (losses * weights.to(wide)).sum(), losses, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0]
        dhidden, dweight, dbias = ctx.saved_tensors
        return (
            None if dhidden is None else dhidden * scale.to(dhidden.dtype),
            None if dweight is None else (dweight * scale).to(ctx.dtypes[0]),
            None if dbias is None else (dbias * scale).to(ctx.dtypes[1]),
            None,
            None,
            None,
            None,
            None,
        )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk: int | None = None,
) -> HeadLoss:
    """hidden [N, D], weight [V, D], targets [N] int64, weights [N] -> HeadLoss. `chunk`: predictions at once."""
    chunk = chunk or max(64, CHUNK_BYTES // (4 * weight.shape[0]) // 64 * 64)
    return HeadLoss(*LinearCrossEntropyFunction.apply(hidden, weight, bias, targets, weights, scale, softcap, chunk))
