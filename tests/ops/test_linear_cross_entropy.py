"""Head and loss in chunks against full logits: the loss and the gradients of states, head and bias."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorikeet.ops.linear_cross_entropy import full_logits, linear_cross_entropy, reference_linear_cross_entropy

N, D, V = 7, 5, 11


def random(*sizes: int, seed: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    targets = torch.randint(V, (N,), generator=torch.Generator().manual_seed(3))
    return random(N, D, seed=0), random(V, D, seed=1), targets, torch.tensor([1, 0.5, 2, 0, 1, 0.25, 3]).double()


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"softcap": 2.0}, {"scale": 1.7, "softcap": 1.5}])
@pytest.mark.parametrize("biased", [False, True])
def test_chunked_loss_equals_full_logits(inputs: tuple[Tensor, ...], chunk: int, options: dict, biased: bool) -> None:
    hidden, weight, targets, weights = inputs
    bias = random(V, seed=2) if biased else None
    wanted = [hidden, weight, *([bias] if biased else [])]
    found = linear_cross_entropy(hidden, weight, targets, weights, bias=bias, chunk=chunk, **options)
    expected = reference_linear_cross_entropy(hidden, weight, targets, weights, bias=bias, **options)
    torch.testing.assert_close(found.loss, expected)
    upstream = 0.37  # what the step multiplies with
    left = torch.autograd.grad(found.loss * upstream, wanted)
    right = torch.autograd.grad(expected * upstream, wanted)
    for a, b in zip(left, right):
        torch.testing.assert_close(a, b)


def test_gradcheck(inputs: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, weights = inputs

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets, weights, bias=bias, scale=0.8, softcap=3.0, chunk=2).loss

    assert torch.autograd.gradcheck(loss, (hidden, weight, random(V, seed=2)))


def test_token_losses_and_hits_are_those_of_full_logits(inputs: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, weights = inputs
    logits = full_logits(hidden, weight)
    targets = targets.clone()
    targets[:2] = logits.argmax(-1)[:2]
    found = linear_cross_entropy(hidden, weight, targets, weights, chunk=2)
    torch.testing.assert_close(found.token_losses, F.cross_entropy(logits, targets, reduction="none"))
    assert found.correct.tolist() == (logits.argmax(-1) == targets).tolist()
    assert found.correct[:2].all() and not found.token_losses.requires_grad


def test_only_what_trains_gets_a_gradient(inputs: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, weights = inputs
    frozen = weight.detach()
    linear_cross_entropy(hidden, frozen, targets, weights).loss.backward()
    assert hidden.grad is not None and frozen.grad is None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets, weights).loss.requires_grad


def test_the_loss_of_bfloat16_states_is_float32() -> None:
    hidden, weight = random(N, D, seed=0).detach().bfloat16().requires_grad_(), random(V, D, seed=1).detach().bfloat16()
    targets, weights = torch.arange(N), torch.ones(N)
    found = linear_cross_entropy(hidden, weight, targets, weights, chunk=3)
    assert found.loss.dtype == torch.float32
    expected = reference_linear_cross_entropy(hidden.double(), weight.double(), targets, weights)
    assert found.loss.item() == pytest.approx(expected.item(), rel=0.01)
    found.loss.backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
