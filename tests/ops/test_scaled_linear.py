"""Vectors beside a frozen linear, and DoRA's row lengths, against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorikeet.base.kinds import kind_class
from lorikeet.ops.dora_linear import dora_linear, reference_dora_linear, row_norms, squared_rows
from lorikeet.ops.lora_linear import LowRank
from lorikeet.ops.scaled_linear import (
    reference_scale_outputs,
    reference_scaled_input_linear,
    scale_outputs,
    scaled_input_linear,
)
from lorikeet.quant._contract import Quant
from lorikeet.quant.none import DenseWeight

SIZES, IN = (4, 2, 3), 5  # of the members of a group
STARTS = (0, 4, 6)
SUBSETS = st.lists(st.sampled_from(range(3)), unique=True, min_size=1)


def random(*sizes: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    drawn = torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(dtype).requires_grad_()


def rows(i: int) -> slice:
    return slice(STARTS[i], STARTS[i] + SIZES[i])


def same_gradients(fast: Tensor, slow: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(fast, slow)
    probe = random(*fast.shape, seed=3).detach()
    found = [torch.autograd.grad((y * probe).sum(), inputs) for y in (fast, slow)]
    for left, right in zip(*found):
        torch.testing.assert_close(left, right)


class Squared:
    """A prologue: x = source^2."""

    def forward(self, source: Tensor) -> tuple[Tensor, Tensor | None]:
        return source * source, None

    def backward(
        self, source: Tensor, kept: Tensor | None, dx: Tensor, *, again: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        return 2 * source * dx, source * source if again else None


@pytest.mark.parametrize("biased", [False, True])
def test_scaled_outputs_equal_their_reference(biased: bool) -> None:
    u, gain, bias = random(4, 9, seed=0), random(9, seed=1), random(9, seed=2) if biased else None
    inputs = [u, gain] + ([bias] if bias is not None else [])
    same_gradients(scale_outputs(u, gain, bias), reference_scale_outputs(u, gain, bias), inputs)


@given(SUBSETS, st.booleans(), st.booleans())
@settings(max_examples=20, deadline=None)
def test_scaled_inputs_equal_their_reference(chosen: list[int], biased: bool, prologue: bool) -> None:
    weight, source = random(9, IN, seed=0).detach(), random(4, IN, seed=1)
    bias = random(9, seed=2).detach() if biased else None
    gains, places = [random(IN, seed=5 + i) for i in chosen], [rows(i) for i in chosen]
    fast = scaled_input_linear(source, DenseWeight(weight), bias, places, gains, Squared() if prologue else None)
    x = source * source if prologue else source
    same_gradients(fast, reference_scaled_input_linear(x, weight, bias, places, gains), [source, *gains])


def test_one_vector_for_the_whole_linear() -> None:
    weight, x, gain = random(9, IN, seed=0).detach(), random(4, IN, seed=1), random(IN, seed=2)
    fast = scaled_input_linear(x, DenseWeight(weight), None, [slice(0, 9)], [gain])
    same_gradients(fast, ((1 + gain) * x) @ weight.T, [x, gain])


@given(SUBSETS, st.lists(st.integers(1, 4), min_size=3, max_size=3), st.booleans(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_dora_equals_its_reference(chosen: list[int], ranks: list[int], biased: bool, prologue: bool) -> None:
    """Output and gradients of x, the bias, every A, B and m, for members in any order and of any rank."""
    weight, source = random(9, IN, seed=0).detach(), random(4, IN, seed=1)
    bias = random(9, seed=2) if biased else None
    members = [LowRank(rows(i), 0.5 + i) for i in chosen]
    factors = [
        one for i in chosen for one in (random(ranks[i], IN, seed=10 + i), random(SIZES[i], ranks[i], seed=20 + i))
    ]
    lengths = [random(SIZES[i], seed=30 + i) for i in chosen]
    kept = DenseWeight(weight)
    squares = [squared_rows(kept, member.rows, torch.float64) for member in members]
    norms = row_norms(kept, members, factors, squares, torch.float64)
    fast = dora_linear(source, kept, bias, members, factors, lengths, norms, prologue=Squared() if prologue else None)
    slow = reference_dora_linear(source * source if prologue else source, weight, bias, members, factors, lengths)
    same_gradients(fast, slow, [source, *factors, *lengths, *([bias] if bias is not None else [])])


def test_lengths_of_rows_are_those_of_the_dense_sum() -> None:
    weight = DenseWeight(random(9, IN, seed=0).detach())
    a, b = random(2, IN, seed=1).detach(), random(4, 2, seed=2).detach()
    squares = squared_rows(weight, slice(0, 4), torch.float64)
    (norm,) = row_norms(weight, [LowRank(slice(0, 4), 0.7)], [a, b], [squares], torch.float64)
    torch.testing.assert_close(norm, (weight.weight[:4] + 0.7 * b @ a).norm(dim=1))


def test_over_quantised_weights_they_are_those_of_what_is_kept() -> None:
    kept = (
        kind_class("lorikeet.quant", Quant, "nf4")
        .model_validate({})
        .freeze(torch.randn(8, 128, generator=torch.Generator().manual_seed(0)))
    )
    a, b = random(2, 128, seed=1, dtype=torch.float32).detach(), random(4, 2, seed=2, dtype=torch.float32).detach()
    members, squares = [LowRank(slice(2, 6), 0.7)], [squared_rows(kept, slice(2, 6), torch.float32)]
    (norm,) = row_norms(kept, members, [a, b], squares, torch.float32)
    torch.testing.assert_close(norm, (kept.rows(2, 6, torch.float32) + 0.7 * b @ a).norm(dim=1))
    start = row_norms(kept, members, [a, torch.zeros_like(b)], squares, torch.float32)
    assert torch.equal(start[0], squares[0].sqrt())  # so that m / n is 1, and the start the base


def test_a_row_that_the_update_wipes_out_stays_finite() -> None:
    weight = DenseWeight(torch.ones(1, 1, dtype=torch.float64))
    a, b = torch.ones(1, 1, dtype=torch.float64), -torch.ones(1, 1, dtype=torch.float64)
    (norm,) = row_norms(weight, [LowRank(slice(0, 1), 1.0)], [a, b], [torch.ones(1).double()], torch.float64)
    assert norm.isfinite().all() and norm.item() > 0


def test_small_gains_survive_sixteen_bits_and_ask_for_float32_gradients() -> None:
    """1.001 is no bfloat16: the scaled activations must still move."""
    u, gain = torch.full((1, 1), 256.0, dtype=torch.bfloat16), torch.full((1,), 0.008, requires_grad=True)
    y = scale_outputs(u, gain)
    assert y.item() == 258.0 and y.dtype == torch.bfloat16
    y.sum().backward()
    assert gain.grad is not None and gain.grad.dtype == torch.float32 and gain.grad.item() == 256.0
