"""The fused LoRA linear against its definition: any subset of members, biases, dropout's mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorikeet.ops.lora_linear import LowRank, lora_linear, reference_lora_linear
from lorikeet.quant.none import DenseWeight

SIZES, IN = (4, 2, 3), 5  # of the members of a group


def random(*sizes: int, seed: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def members(chosen: list[int]) -> list[LowRank]:
    starts = [sum(SIZES[:i]) for i in range(len(SIZES))]
    return [LowRank(slice(starts[i], starts[i] + SIZES[i]), 0.5 + i) for i in chosen]


def factors(chosen: list[int], ranks: list[int]) -> list[Tensor]:
    return [
        factor
        for i, r in zip(chosen, ranks)
        for factor in (random(r, IN, seed=10 + i), random(SIZES[i], r, seed=20 + i))
    ]


@given(
    st.lists(st.sampled_from(range(len(SIZES))), unique=True), st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.booleans(), st.integers(1, 6),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_fused_equals_its_reference(chosen: list[int], ranks: list[int], biased: bool, rows: int) -> None:
    """Loss and gradients with respect to x, the bias, every A and every B; members may differ in rank."""
    weight, x = random(sum(SIZES), IN, seed=0).detach(), random(rows, IN, seed=1)
    bias = random(sum(SIZES), seed=2) if biased else None
    pairs, low_rank = factors(chosen, ranks), members(chosen)
    fast = lora_linear(x, DenseWeight(weight), bias, low_rank, pairs)
    slow = reference_lora_linear(x, weight, bias, low_rank, pairs)
    torch.testing.assert_close(fast, slow)
    inputs, probe = [x, *pairs, *([bias] if biased else [])], random(*fast.shape, seed=3).detach()
    gradients = [torch.autograd.grad((y * probe).sum(), inputs) for y in (fast, slow)]
    for left, right in zip(*gradients):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_gradients_are_those_of_the_mask_that_was_drawn(p: float) -> None:
    weight, x, bias = DenseWeight(random(9, IN, seed=0).detach()), random(4, IN, seed=1), random(9, seed=2)
    low_rank, pairs = members([0, 2]), factors([0, 2], [2, 3])

    def run(x: Tensor, bias: Tensor, *pairs: Tensor) -> Tensor:
        torch.manual_seed(7)
        return lora_linear(x, weight, bias, low_rank, pairs, dropout=p)

    assert torch.autograd.gradcheck(run, (x, bias, *pairs))


def test_dropout_drops_inputs_of_the_update_and_scales_the_rest() -> None:
    weight, x = random(9, IN, seed=0).detach(), random(4, IN, seed=1)
    low_rank, pairs = members([1]), factors([1], [2])
    torch.manual_seed(3)
    keep = (torch.rand(4, IN) >= 0.4).double() / 0.6
    torch.manual_seed(3)
    found = lora_linear(x, DenseWeight(weight), None, low_rank, pairs, dropout=0.4)
    torch.testing.assert_close(found, reference_lora_linear(x, weight, None, low_rank, pairs, keep))


def test_float32_factors_meet_bfloat16_activations_and_get_float32_gradients() -> None:
    weight, x = random(9, IN, seed=0).detach().bfloat16(), random(4, IN, seed=1).detach().bfloat16().requires_grad_()
    pairs = [factor.detach().float().requires_grad_() for factor in factors([0], [2])]
    found = lora_linear(x, DenseWeight(weight), None, members([0]), pairs)
    expected = reference_lora_linear(x.double(), weight.double(), None, members([0]), [f.double() for f in pairs])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=0.05, atol=0.05)
    found.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    assert all(factor.grad is not None and factor.grad.dtype == torch.float32 for factor in pairs)


class OwnProducts(DenseWeight):
    """A kind that never makes its dense form."""

    def linear(self, x: Tensor) -> Tensor:
        return x @ self.weight.T

    def backward(self, dy: Tensor) -> Tensor:
        return dy @ self.weight

    def dense(self, dtype: torch.dtype) -> Tensor:
        raise AssertionError


def test_a_kind_with_products_of_its_own_is_asked_for_them() -> None:
    weight, x = random(9, IN, seed=0).detach(), random(4, IN, seed=1)
    low_rank, pairs, probe = members([0, 2]), factors([0, 2], [2, 3]), random(4, 9, seed=3).detach()
    for kind in (OwnProducts, DenseWeight):
        y = lora_linear(x, kind(weight), None, low_rank, pairs)
        found = [y, *torch.autograd.grad((y * probe).sum(), [x, *pairs])]
        if kind is OwnProducts:
            expected = found
    for left, right in zip(found, expected):
        torch.testing.assert_close(left, right)


def test_nothing_of_a_frozen_linear_is_kept_or_written_to() -> None:
    """The dense weight may alias storage: the output must not."""
    weight = DenseWeight(random(9, IN, seed=0).detach())
    before = weight.weight.clone()
    y = lora_linear(random(4, IN, seed=1), weight, None, members([0, 1, 2]), factors([0, 1, 2], [1, 1, 1]))
    y.sum().backward()
    assert torch.equal(weight.weight, before)
