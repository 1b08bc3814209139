"""The face of cross_entropy.cpp: losses of rows of logits, and the gradient in the logits' own memory."""

from __future__ import annotations

import torch
from torch import Tensor

from lorikeet.kernels import DTYPES, Kernel

_cross_entropy = Kernel("cross_entropy", "cross_entropy")


def cross_entropy_(
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
    """logits [N, V], targets [N] int64, weights [N] -> fills losses [N] float32 and correct [N] bool. With `gradient`
    the logits become d(sum of weights * losses) / d(logits). A target outside of 0 .. V - 1 has the loss NaN."""
    assert logits.is_contiguous() and losses.is_contiguous() and correct.is_contiguous()
    assert losses.dtype == torch.float32 and correct.dtype == torch.bool and targets.dtype == torch.int64
    rows, width = logits.shape
    bias = None if bias is None else bias.float().contiguous()
    targets, weights = targets.contiguous(), weights.float().contiguous()
    _cross_entropy(
        DTYPES[logits.dtype], rows, width, logits, bias, float(scale), float(softcap or 0.0), targets, weights,
        int(gradient), losses, correct,
    )  # fmt: skip
