"""Head and loss in chunks against full logits: the loss and the gradients of states, head and bias."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorikeet.kernels import build
from lorikeet.kernels import cross_entropy as compiled
from lorikeet.ops.linear_cross_entropy import (
    eager_cross_entropy_,
    full_logits,
    linear_cross_entropy,
    reference_linear_cross_entropy,
)

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


OPTIONS = [{}, {"scale": 0.3}, {"softcap": 2.0}, {"scale": -1.7, "softcap": 30.0}]


def compare(
    dtype: torch.dtype, rows: int, vocab: int, tolerance: float, biased: bool = False, **options: float
) -> None:
    """Loss, losses, hits and gradients against the definition in float64 over the same logits' inputs."""
    hidden = (random(rows, 24, seed=0) * 2).detach().to(dtype).requires_grad_()
    weight = random(vocab, 24, seed=1).detach().to(dtype).requires_grad_()
    bias = random(vocab, seed=2).detach().float().requires_grad_() if biased else None
    targets = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(4))
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(5)) * (torch.arange(rows) % 3 != 1)
    found = linear_cross_entropy(hidden, weight, targets, weights, bias=bias, chunk=5, **options)
    inputs = [hidden, weight, *([bias] if biased else [])]
    wide = [each.detach().double().requires_grad_() for each in inputs]
    expected = reference_linear_cross_entropy(
        wide[0], wide[1], targets, weights, bias=wide[2] if biased else None, **options
    )
    logits = full_logits(wide[0], wide[1], bias=wide[2] if biased else None, **options)
    assert found.loss.item() == pytest.approx(expected.item(), rel=tolerance, abs=1e-12)
    losses = F.cross_entropy(logits, targets, reduction="none").detach()
    torch.testing.assert_close(found.token_losses.double(), losses, rtol=tolerance, atol=tolerance * 10)
    if dtype == torch.float32:
        assert found.correct.tolist() == (logits.argmax(-1) == targets).tolist()
    left, right = torch.autograd.grad(found.loss, inputs), torch.autograd.grad(expected, wide)
    for a, b in zip(left, right):
        assert (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("vocab", [1, 3, 16, 1023, 2051])
@pytest.mark.parametrize("biased", [False, True])
def test_float32(computed_by: str, options: dict, vocab: int, biased: bool) -> None:
    compare(torch.float32, 13, vocab, 1e-5, biased, **options)


@pytest.mark.parametrize("options", OPTIONS)
def test_bfloat16_to_rounding(computed_by: str, options: dict) -> None:
    compare(torch.bfloat16, 13, 2051, 1.5e-2, True, **options)


def test_compiled_and_eager_agree_far_below_rounding() -> None:
    if build.build() is None:
        pytest.skip("no C++ compiler here")
    logits = (torch.randn(9, 1500, generator=torch.Generator().manual_seed(0)) * 4).bfloat16()
    targets, weights = torch.arange(9) * 150, torch.linspace(0, 2, 9)
    made = []
    for function in (compiled.cross_entropy_, eager_cross_entropy_):
        grad, losses, correct = logits.clone(), torch.empty(9), torch.empty(9, dtype=torch.bool)
        function(grad, targets, weights, losses, correct, bias=None, scale=1.0, softcap=5.0, gradient=True)
        made.append((grad.float(), losses, correct))
    torch.testing.assert_close(made[0][1], made[1][1], rtol=2e-6, atol=2e-6)
    assert torch.equal(made[0][2], made[1][2])
    assert (made[0][0] - made[1][0]).norm() < 1e-3 * made[1][0].norm()  # one value in many rounds the other way


def test_without_a_gradient_logits_stay(computed_by: str) -> None:
    function = compiled.cross_entropy_ if computed_by == "auto" else eager_cross_entropy_
    logits = torch.randn(4, 33)
    kept, losses = logits.clone(), torch.empty(4)
    correct = torch.empty(4, dtype=torch.bool)
    function(
        logits, torch.arange(4), torch.ones(4), losses, correct, bias=None, scale=1.0, softcap=None, gradient=False
    )
    assert torch.equal(logits, kept)
    torch.testing.assert_close(losses, F.cross_entropy(kept, torch.arange(4), reduction="none"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_do_not_touch_each_other_or_the_inputs(computed_by: str, dtype: torch.dtype) -> None:
    hidden, weight = torch.randn(7, 8).to(dtype).requires_grad_(), torch.randn(19, 8).to(dtype)
    before = hidden.detach().clone(), weight.clone()
    targets, weights = torch.arange(7), torch.ones(7)
    together = linear_cross_entropy(hidden, weight, targets, weights)
    (gradient,) = torch.autograd.grad(together.loss, hidden)
    (again,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, weights, chunk=2).loss, hidden)
    torch.testing.assert_close(gradient, again)
    assert torch.equal(hidden, before[0]) and torch.equal(weight, before[1])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}])
def test_states_that_are_no_numbers_give_a_loss_that_is_none(
    computed_by: str, wrong: float, dtype: torch.dtype, options: dict
) -> None:
    hidden = torch.randn(5, 8)
    hidden[3, 2] = wrong
    weight = torch.randn(40, 8)
    weight[7, 2] = 0.0  # inf * 0: a NaN among infinities, which a softcap would otherwise hide
    found = linear_cross_entropy(hidden.to(dtype), weight.to(dtype), torch.arange(5), torch.ones(5), **options)
    assert not found.loss.isfinite() and not found.token_losses[3].isfinite()
    assert found.token_losses[[0, 1, 2, 4]].isfinite().all() and not found.correct[3]


def test_masked_logits_are_no_trouble(computed_by: str) -> None:
    logits = torch.randn(3, 2100)
    logits[:, :1100] = -float("inf")  # a whole block of them
    losses, correct = torch.empty(3), torch.empty(3, dtype=torch.bool)
    targets, grad = torch.tensor([1200, 2000, 2099]), logits.clone()
    function = compiled.cross_entropy_ if computed_by == "auto" else eager_cross_entropy_
    function(grad, targets, torch.ones(3), losses, correct, bias=None, scale=1.0, softcap=None, gradient=True)
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets, reduction="none"))
    assert (grad[:, :1100] == 0).all() and grad.isfinite().all()


def test_a_target_outside_of_the_vocabulary_is_never_silent(computed_by: str) -> None:
    inputs = torch.randn(2, 8), torch.randn(9, 8), torch.tensor([3, 9]), torch.ones(2)
    try:
        assert not linear_cross_entropy(*inputs).loss.isfinite()
    except (RuntimeError, IndexError):
        assert computed_by == "eager"
