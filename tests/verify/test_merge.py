"""Measuring two models: what is not a number is never taken for a difference of nothing."""

from __future__ import annotations

import math

import torch
from torch import nn

from lorikeet.base.nouns import Batch
from lorikeet.models.causal_lm import Head
from lorikeet.tokens._contract import Tokenizer
from lorikeet.verify.limits import Limits
from lorikeet.verify.merge import HeldOut, Said, compare


def test_a_model_that_says_no_numbers_keeps_no_limit() -> None:
    head = Head(nn.Parameter(torch.eye(4), requires_grad=False))
    states, tokens = torch.ones(3, 4), torch.arange(3)
    row = Batch(tokens, tokens, tokens, tokens, tokens, torch.ones(3), 3.0, 3)
    asked = HeldOut([row], [], 1)
    broken = states.index_fill(0, torch.tensor([1]), math.nan)
    found = compare(Said(states, head, []), Said(broken, head, []), asked, Tokenizer)  # type: ignore[arg-type]
    assert math.isnan(found.mean_kl) and math.isnan(found.max_kl) and found.top1_agreement < 0.7
    limits = {"mean_kl": 1.0, "max_kl": 1.0, "loss_increase": 1.0, "top1_agreement": 1.0}
    assert set(Limits(**limits).broken(found)) == set(limits)
    same = compare(Said(states, head, []), Said(states, head, []), asked, Tokenizer)  # type: ignore[arg-type]
    assert same.mean_kl == same.max_kl == 0.0 and same.top1_agreement == 1.0
