"""Label smoothing = torch's and transformers', with and without a cap on the logits, on loss and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorikeet.models.causal_lm import Head
from lorikeet.ops.label_smoothing import CHUNK_ROWS, margin, reference_margin
from lorikeet.ops.linear_cross_entropy import full_logits

D, V = 5, 11


def random(*sizes: int, seed: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def drawn(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return random(count, D, seed=0), torch.randint(V, (count,), generator=generator), torch.rand(count).double()


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"softcap": 2.0}, {"scale": 1.7, "softcap": 1.5}])
@pytest.mark.parametrize("biased", [False, True])
def test_the_term_equals_its_definition(options: dict[str, Any], biased: bool) -> None:
    hidden, targets, weights = drawn(2 * CHUNK_ROWS + 7)
    weight, bias = random(V, D, seed=1), random(V, seed=2) if biased else None
    wanted = [hidden, weight, *([bias] if bias is not None else [])]
    found = margin(hidden, weight, targets, weights, bias=bias, **options)
    expected = reference_margin(hidden, weight, targets, weights, bias=bias, **options)
    torch.testing.assert_close(found, expected)
    for a, b in zip(torch.autograd.grad(found * 0.7, wanted), torch.autograd.grad(expected * 0.7, wanted)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_smoothed_loss_equals_torch_s(softcap: float | None) -> None:
    hidden, targets, _ = drawn(9)
    weight = torch.nn.Parameter(random(V, D, seed=1).detach())
    head = Head(weight, softcap=softcap)
    ones = torch.ones(9).double()
    found = head.loss(hidden, targets, ones).loss + 0.15 * head.margin(hidden, targets, ones)
    logits = full_logits(hidden, weight, softcap=softcap)
    expected = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.15)
    torch.testing.assert_close(found, expected)
    for a, b in zip(torch.autograd.grad(found, [hidden, weight]), torch.autograd.grad(expected, [hidden, weight])):
        torch.testing.assert_close(a, b)


def test_the_mean_over_trained_tokens_equals_transformers() -> None:
    trainer = pytest.importorskip("transformers.trainer_pt_utils")
    hidden, targets, _ = drawn(8)
    weight = random(V, D, seed=1)
    trained = torch.tensor([1, 1, 0, 1, 0, 1, 1, 1.0])
    labels = torch.where(trained > 0, targets, -100)
    expected = trainer.LabelSmoother(epsilon=0.1)({"logits": (hidden @ weight.T)[None]}, labels[None])
    head = Head(torch.nn.Parameter(weight.detach()))
    found = head.loss(hidden, targets, trained).loss + 0.1 * head.margin(hidden, targets, trained)
    torch.testing.assert_close(found / trained.sum(), expected)
