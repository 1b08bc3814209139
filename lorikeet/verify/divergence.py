"""How far two models' predictions are apart, from their last hidden states and their heads.

The states [N, D] of one model and its head are all that is needed of it to have its exact logits again, and are small:
so two models can be compared that never are in memory together. Logits are made a block of the vocabulary at a time,
in at least float32 whatever the models compute in, and summed up in float64:

    KL(p || q) = sum_v p_v (x_v - y_v) - logsumexp(x) + logsumexp(y)        x, y: logits; p = softmax(x)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorikeet.models.causal_lm import Head
from lorikeet.ops.linear_cross_entropy import full_logits

ROWS, BLOCK = 256, 8192  # predictions and words of the vocabulary at once: 16 MiB a block in float64


@dataclass(frozen=True)
class Divergence:
    """Of each of N predictions, on the CPU."""

    kl: Tensor  # [N] float64, nats: KL(first || second)
    same_top: Tensor  # [N] bool: the same most likely token; False where a logit is not a number
    losses: tuple[Tensor, Tensor]  # [N] float64 each, nats: of the target, under the first and the second


def reference_divergence(x: Tensor, y: Tensor, targets: Tensor) -> Divergence:
    """The definition, from whole logits [N, V]."""
    p, q = x.double().log_softmax(-1), y.double().log_softmax(-1)
    losses = tuple(-one.gather(1, targets[:, None])[:, 0] for one in (p, q))
    return Divergence((p.exp() * (p - q)).sum(-1), x.argmax(-1) == y.argmax(-1), (losses[0], losses[1]))


@torch.no_grad()
def divergence(
    first: Tensor, first_head: Head, second: Tensor, second_head: Head, targets: Tensor, *, block: int = BLOCK
) -> Divergence:
    """first and second [N, D]: the states that predict `targets` [N]. The heads share a vocabulary, not a width."""
    assert len(first) == len(second) == len(targets)
    assert len(first_head.weight) == len(second_head.weight)
    kl, same, losses = [], [], []
    for start in range(0, len(targets), ROWS):
        part = slice(start, start + ROWS)
        sides = (_Side(first[part], first_head, targets[part]), _Side(second[part], second_head, targets[part]))
        gap = torch.zeros(len(targets[part]), dtype=torch.float64, device=sides[0].device)
        for at in range(0, len(first_head.weight), block):
            x, y = (side.logits(at, at + block) for side in sides)
            shrunk, p = sides[0].take(x, at)
            sides[1].take(y, at)
            # words that both rule out (a masked vocabulary) add nothing: 0 * (-inf + inf) would not be a number
            gap = gap * shrunk + torch.where(p > 0, p * (x - y), 0.0).sum(-1)
        logsums = [side.logsum for side in sides]
        kl.append((gap / sides[0].total - logsums[0] + logsums[1]).cpu())
        known = ~torch.isnan(logsums[0] + logsums[1])
        same.append(((sides[0].top == sides[1].top) & known).cpu())
        losses.append([(side.logsum - side.picked).cpu() for side in sides])
    return Divergence(
        torch.cat(kl), torch.cat(same), (torch.cat([a for a, _ in losses]), torch.cat([b for _, b in losses]))
    )


class _Side:
    """What is known so far of one model's logits of some rows: running maximum, sum of exponentials, the target's."""

    def __init__(self, states: Tensor, head: Head, targets: Tensor):
        self.head, self.device = head, head.weight.device
        self.wide = torch.promote_types(states.dtype, torch.float32)
        self.states, self.targets = states.to(self.device, self.wide), targets.to(self.device)
        empty = torch.zeros(len(targets), dtype=torch.float64, device=self.device)
        self.most, self.total, self.picked = empty - torch.inf, empty.clone(), empty.clone()
        self.top = torch.zeros_like(self.targets)

    @property
    def logsum(self) -> Tensor:
        return self.most + self.total.log()

    def logits(self, start: int, stop: int) -> Tensor:
        """[rows, words start..stop] float64, from a matmul in at least float32."""
        head = self.head
        bias = None if head.bias is None else head.bias[start:stop]
        weight = head.weight[start:stop].to(self.wide)
        return full_logits(self.states, weight, bias=bias, scale=head.scale, softcap=head.softcap).double()

    def take(self, logits: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Count a block in. Returns by how much earlier sums shrink [rows], and e^(logit - maximum) [rows, words]."""
        best, at = logits.max(-1)
        self.top = torch.where(best > self.most, at + start, self.top)
        most = torch.maximum(best, self.most)
        shrunk, powers = (self.most - most).exp(), (logits - most[:, None]).exp()
        self.most, self.total = most, self.total * shrunk + powers.sum(-1)
        here = (self.targets >= start) & (self.targets < start + logits.shape[1])
        found = logits.gather(1, (self.targets - start).clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        self.picked = torch.where(here, found, self.picked)
        return shrunk, powers
