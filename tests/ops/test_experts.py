"""The sorted, padded mixture of experts against its definition: output and every gradient, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorikeet.ops.experts import Experts, mixture, reference_experts
from lorikeet.ops.lora_linear import LowRank
from lorikeet.quant.none import DenseWeight

E, D, F = 5, 6, 4  # experts, width, feed-forward width
GATE, UP, DOWN = (LowRank(rows, s) for rows, s in ((slice(0, F), 0.5), (slice(F, 2 * F), 2.0), (slice(0, D), 1.5)))


def random(*sizes: int, seed: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def route(tokens: int, k: int, seed: int, among: int = E) -> tuple[Tensor, Tensor]:
    """Experts of each token, from the first `among`, and their shares."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(among, generator=generator)[:k] for _ in range(tokens)])
    return chosen, random(tokens, k, seed=seed + 1)


def build(gate_up_members: tuple[LowRank, ...], down_members: tuple[LowRank, ...], **options: object) -> Experts:
    gate_up, down = random(E * 2 * F, D, seed=2).detach(), random(E * D, F, seed=3).detach()
    weights = DenseWeight(gate_up), DenseWeight(down)
    return Experts(E, *weights, gate_up_members=gate_up_members, down_members=down_members, **options)  # type: ignore


def factors(experts: Experts, rank: int) -> list[Tensor]:
    found = []
    for i, member in enumerate((*experts.gate_up_members, *experts.down_members)):
        size = F if member is DOWN else D
        found += [random(E, rank, size, seed=10 + i)]
        found += [random(E, member.rows.stop - member.rows.start, rank, seed=20 + i)]
    return found


def reference(x: Tensor, chosen: Tensor, share: Tensor, experts: Experts, pairs: list[Tensor]) -> Tensor:
    return reference_experts(
        x, chosen, share,
        experts.gate_up.dense(x.dtype).view(E, 2 * F, D), experts.down.dense(x.dtype).view(E, D, F),
        activation=experts.activation, factors=pairs,
        gate_up_members=experts.gate_up_members, down_members=experts.down_members,
    )  # fmt: skip


def assert_equal_gradients(experts: Experts, tokens: int, k: int, rank: int, among: int = E) -> None:
    x, (chosen, share), pairs = random(tokens, D, seed=0), route(tokens, k, 4, among), factors(experts, rank)
    fast, slow = mixture(x, chosen, share, experts, pairs), reference(x, chosen, share, experts, pairs)
    torch.testing.assert_close(fast, slow)
    probe, inputs = random(tokens, D, seed=6).detach(), [x, share, *pairs]
    left = torch.autograd.grad((fast * probe).sum(), inputs)
    right = torch.autograd.grad((slow * probe).sum(), inputs, materialize_grads=True)
    for one, other in zip(left, right):
        torch.testing.assert_close(one, other)


@given(
    st.sets(st.sampled_from(["gate", "up"])), st.booleans(), st.integers(1, 40), st.integers(1, 3), st.integers(1, 3),
    st.sampled_from(["silu", "gelu_tanh", "gelu"]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_fast_equals_its_reference(
    which: set[str], down: bool, tokens: int, k: int, rank: int, activation: str
) -> None:
    """Output, and gradients with respect to x, the shares and every factor."""
    first = tuple(member for name, member in (("gate", GATE), ("up", UP)) if name in which)
    experts = build(first, (DOWN,) if down else (), activation=activation)
    assert_equal_gradients(experts, tokens, k, rank)


def test_experts_without_tokens_have_zero_gradients_and_are_not_asked_for() -> None:
    experts = build((GATE, UP), (DOWN,))
    asked = set()
    real = experts.gate_up.rows
    experts.gate_up.rows = lambda start, stop, dtype: asked.add(start // (2 * F)) or real(start, stop, dtype)  # type: ignore
    assert_equal_gradients(experts, tokens=7, k=2, rank=2, among=3)
    assert asked == {0, 1, 2}
    x, (chosen, share), pairs = random(7, D, seed=0), route(7, 2, 4, among=3), factors(experts, 2)
    mixture(x, chosen, share, experts, pairs).sum().backward()
    for factor in pairs:
        assert factor.grad is not None
        assert factor.grad[:3].abs().amin(0).max() > 0 and not factor.grad[3:].any()


def test_one_busy_expert_needs_no_other() -> None:
    experts = build((UP,), ())
    assert_equal_gradients(experts, tokens=50, k=1, rank=1, among=1)  # more rows than one padded size


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_gradients_are_those_of_the_masks_that_were_drawn(p: float) -> None:
    experts = build((GATE, UP), (DOWN,), dropout=p)
    x, (chosen, share), pairs = random(3, D, seed=0), route(3, 2, 4), factors(experts, 1)

    def run(x: Tensor, share: Tensor, *pairs: Tensor) -> Tensor:
        torch.manual_seed(7)
        return mixture(x, chosen, share, experts, pairs)

    assert torch.autograd.gradcheck(run, (x, share, *pairs))
    if p:
        assert not torch.allclose(run(x, share, *pairs), reference(x, chosen, share, experts, pairs))


def test_bfloat16_is_near_float64() -> None:
    experts = build((GATE, UP), (DOWN,))
    x, (chosen, share), pairs = random(30, D, seed=0), route(30, 2, 4), factors(experts, 2)
    low = mixture(x.to(torch.bfloat16), chosen, share.float(), experts, [factor.float() for factor in pairs])
    assert low.dtype == torch.bfloat16
    exact = mixture(x, chosen, share, experts, pairs)
    assert (low - exact).norm() < 0.03 * exact.norm()


def test_no_token_at_all() -> None:
    experts = build((), ())
    empty = torch.zeros(0, 2, dtype=torch.int64)
    assert mixture(random(0, D, seed=0), empty, empty.double(), experts).shape == (0, D)
