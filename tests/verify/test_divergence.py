"""The divergence of two heads, a block at a time, is that of whole logits."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lorikeet.models.causal_lm import Head
from lorikeet.verify.divergence import Divergence, divergence, reference_divergence


def head(vocab: int, width: int, seed: int, dtype: torch.dtype = torch.float64, **settings: float) -> Head:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.float64).to(dtype)
    return Head(nn.Parameter(weight, requires_grad=False), **settings)  # type: ignore[arg-type]


def states(count: int, width: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Divergence, expected: Divergence) -> bool:
    return (
        torch.allclose(found.kl, expected.kl, atol=1e-10)
        and bool((found.same_top == expected.same_top).all())
        and all(torch.allclose(a, b, atol=1e-10) for a, b in zip(found.losses, expected.losses))
    )


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 300),
    vocab=st.integers(1, 40),
    block=st.integers(1, 50),
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 1000),
)
def test_in_blocks_as_from_whole_logits(count: int, vocab: int, block: int, widths: tuple[int, int], seed: int) -> None:
    left, right = states(count, widths[0], seed), states(count, widths[1], seed + 1)
    one, other = head(vocab, widths[0], seed + 2), head(vocab, widths[1], seed + 3, scale=0.5, softcap=4.0)
    targets = torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(seed))
    expected = reference_divergence(one.logits(left), other.logits(right), targets)
    assert close(divergence(left, one, right, other, targets, block=block), expected)


def test_a_bias_belongs_to_its_words() -> None:
    one, other = head(11, 4, 0), head(11, 4, 0)
    other.bias = nn.Parameter(torch.linspace(-2, 2, 11).double(), requires_grad=False)
    left, targets = states(7, 4, 1), torch.arange(7)
    expected = reference_divergence(one.logits(left), other.logits(left), targets)
    assert expected.kl.min() > 1e-3
    assert close(divergence(left, one, left, other, targets, block=3), expected)


def test_equal_models_do_not_diverge_at_all() -> None:
    one, left = head(50, 8, 0, torch.bfloat16), states(20, 8, 1).bfloat16()
    found = divergence(left, one, left, one, torch.arange(20), block=7)
    assert found.kl.abs().max() < 1e-12 and found.same_top.all()
    assert torch.equal(*found.losses)


def test_words_that_both_rule_out_count_for_nothing() -> None:
    one, left = head(6, 4, 0), states(5, 4, 1)
    one.bias = nn.Parameter(torch.tensor([0, 0, 0, 0, -torch.inf, -torch.inf]).double(), requires_grad=False)
    found = divergence(left, one, left, one, torch.zeros(5, dtype=torch.int64), block=4)
    assert found.kl.abs().max() < 1e-12
