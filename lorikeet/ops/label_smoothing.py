"""Label smoothing (Szegedy et al. 2016) as a term beside the cross-entropy, so that no kernel of the loss knows it.

With the share e of each target spread over the vocabulary, a token's loss is

    (1 - e) (lse - l_t) + e (lse - mean of l)   =   (lse - l_t) + e (l_t - mean of l)

The second part needs no softmax. Without a cap on the logits its mean is one row: h . (mean of the head's rows).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lorikeet.ops.linear_cross_entropy import full_logits

CHUNK_ROWS = 64  # predictions at once where logits are capped


def reference_margin(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """The definition: the weighted sum of each target's logit less the mean of all logits."""
    logits = full_logits(hidden, weight, bias=bias, scale=scale, softcap=softcap)
    margins = logits.gather(1, targets[:, None])[:, 0] - logits.mean(-1)
    return (margins * weights.to(margins.dtype)).sum()


def margin(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """As `reference_margin`, and never more than a few rows of logits at once. hidden [N, D], weight [V, D]."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if softcap is None:
        beyond = weight[targets].to(wide) - weight.mean(0, dtype=wide)
        margins = (hidden.to(wide) * beyond).sum(-1)
        if bias is not None:
            margins = margins + bias[targets].to(wide) - bias.mean(dtype=wide)
        return (margins * weights.to(wide)).sum() * scale
    total = torch.zeros((), dtype=wide, device=hidden.device)
    for start in range(0, len(targets), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        total = total + checkpoint(
            reference_margin, hidden[part], weight, targets[part], weights[part],
            bias=bias, scale=scale, softcap=softcap, use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip
    return total
