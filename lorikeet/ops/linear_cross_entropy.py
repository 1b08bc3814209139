"""The head and the loss in one: cross-entropy of `hidden @ W^T` at the trained positions, a chunk at a time.

Logits [N, V] are never built whole. Because the head's matmul meets nothing but this loss, each chunk's gradient is
known as soon as its softmax is: the forward pass makes the gradient too, and the backward pass only scales it. Logits
and gradient share one buffer in the states' dtype, used by every chunk: bytes at the peak are chunk * V * itemsize.

    loss = sum_n w_n (logsumexp(l_n) - l_n[target_n])        dl_n = w_n (softmax(l_n) - onehot(target_n))
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lorikeet import kernels
from lorikeet.kernels import cross_entropy as compiled
from lorikeet.kernels import few_rows, linear
from lorikeet.ops.weight_gradient import product, table_gradient

# Logits at once. Each chunk reads the whole head, so few rows are slow: on tiles, V 49152 x D 576, logits and their
# gradient's product take 0.19 ms a row in chunks of 330 rows and 0.18 in chunks of 522. Blocks from 32 MiB on come
# fresh from the system each time (glibc's largest mmap threshold), at 2.7 microseconds a page here.
CHUNK_BYTES, CHUNK_ROWS = 31 << 20, 128  # at most these bytes, but at least these rows
EAGER_BYTES = 2 << 20  # of the softmax in plain PyTorch: its passes then run in cache


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
    weight = weight.to(hidden.dtype)
    logits = few_rows.forward(hidden, weight) if few_rows.serves(hidden, weight) else hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        logits = logits + bias
    logits = logits * scale if scale != 1.0 else logits
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def eager_cross_entropy_(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    losses: Tensor,
    correct: Tensor,
    *,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    gradient: bool,
) -> None:
    """What the compiled `cross_entropy_` does, on any device and in any float dtype."""
    wide = losses.dtype
    at_once = max(1, EAGER_BYTES // (wide.itemsize * logits.shape[1])) if logits.device.type == "cpu" else len(logits)
    buffer = torch.empty(min(at_once, len(logits)), logits.shape[1], dtype=wide, device=logits.device)
    for start in range(0, len(logits), max(1, at_once)):
        part = slice(start, start + at_once)
        target, slope = targets[part, None], None
        final = buffer[: len(target)].copy_(logits[part])
        if bias is not None:
            final.add_(bias)
        if scale != 1.0:
            final.mul_(scale)
        if softcap is not None:
            final.div_(softcap).tanh_()
            slope = 1 - final.square() if gradient else None
            final.mul_(softcap)
        top, picked = final.amax(-1, keepdim=True), final.gather(1, target)
        total = final.sub_(top).exp_().sum(-1, keepdim=True)
        losses[part] = (top - picked + total.log())[:, 0]
        correct[part] = (picked >= top)[:, 0]
        if not gradient:
            continue
        factor = weights[part, None].to(wide) * scale
        final.mul_(factor / total).scatter_add_(1, target, -factor)
        logits[part] = final if slope is None else final.mul_(slope)


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
        rows: Tensor | None = None,
        first: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, wide = len(targets), torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(count, dtype=wide, device=hidden.device)
        correct = torch.empty(count, dtype=torch.bool, device=hidden.device)
        wants = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2])
        dhidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if wants[0] else None
        dweight = torch.zeros_like(weight, dtype=wide) if wants[1] and not count else None
        dbias = torch.zeros_like(bias, dtype=wide) if wants[2] and bias is not None else None
        drows = torch.zeros_like(rows, dtype=wide) if rows is not None and ctx.needs_input_grad[8] else None
        softmax = compiled.cross_entropy_ if kernels.serves(hidden) else eager_cross_entropy_
        matrix = weight.to(hidden.dtype)
        buffer = torch.empty(min(chunk, count), len(weight), dtype=hidden.dtype, device=hidden.device)
        for start in range(0, count, chunk):
            part = slice(start, min(start + chunk, count))
            logits = buffer[: part.stop - start]
            tiles = linear.serves(hidden[part], len(matrix), matrix.shape[1])
            if tiles:
                linear.forward(hidden[part], matrix, out=logits)
            else:
                torch.mm(hidden[part], matrix.T, out=logits)
            softmax(
                logits, targets[part], weights[part], losses[part], correct[part],
                bias=bias, scale=scale, softcap=softcap, gradient=any(wants) or drows is not None,
            )  # fmt: skip
            if dbias is not None:
                dbias.add_(logits.sum(0, dtype=wide))
            if dhidden is not None and tiles:
                linear.backward(logits, matrix, out=dhidden[part])
            elif dhidden is not None:
                torch.mm(logits, matrix, out=dhidden[part])
            if wants[1]:
                dweight = product(logits, hidden[part], wide, dweight)
            if drows is not None:
                drows.add_(logits[:, first : first + len(drows)].T @ hidden[part])
        ctx.save_for_backward(dhidden, dweight, dbias, drows)
        ctx.weight = weight if wants[1] else None
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype, None if rows is None else rows.dtype)
        ctx.mark_non_differentiable(losses, correct)
        return (losses * weights.to(wide)).sum(), losses, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0]
        dhidden, dweight, dbias, drows = ctx.saved_tensors
        return (
            None if dhidden is None else dhidden * scale.to(dhidden.dtype),
            None if dweight is None else table_gradient(ctx.weight, dweight, scale),
            None if dbias is None else (dbias * scale).to(ctx.dtypes[1]),
            None,
            None,
            None,
            None,
            None,
            None if drows is None else (drows * scale).to(ctx.dtypes[2]),
            None,
        )


def even_chunk(count: int, most: int) -> int:
    """Rows of a chunk, a multiple of 64 where `most` is: as few chunks as `most` allows, of about one size."""
    even = -(-count // max(1, -(-count // most)))
    return min(most, even + -even % 64)


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
    rows: tuple[int, Tensor] | None = None,
) -> HeadLoss:
    """hidden [N, D], weight [V, D], targets [N] int64, weights [N] -> HeadLoss. `chunk`: predictions at once. `rows`:
    (the first of them, rows [n, D] of the weight) that get a gradient where the others have none."""
    if not torch.is_grad_enabled():  # a function of autograd cannot tell: without gradients only the losses are made
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    chunk = chunk or even_chunk(len(targets), max(CHUNK_ROWS, CHUNK_BYTES // (hidden.dtype.itemsize * len(weight))))
    first, trained = (0, None) if rows is None else rows
    trained = trained if torch.is_grad_enabled() else None
    found = LinearCrossEntropyFunction.apply(
        hidden, weight, bias, targets, weights, scale, softcap, chunk, trained, first
    )
    return HeadLoss(*found)
