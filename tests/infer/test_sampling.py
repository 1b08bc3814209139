"""The sampler's arithmetic is transformers'; a seed decides a reply."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet.infer.sampling import GenerateOptions, Sampler, distribution, penalised

V = 40


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(V, generator=torch.Generator().manual_seed(seed))


@given(
    st.integers(0, 99), st.floats(0.2, 3), st.sampled_from([0, 1, 5, V, V + 5]), st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    st.sampled_from([1.0, 0.7, 1.5]), st.sets(st.integers(0, V - 1), min_size=1),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_the_distribution_equals_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, penalty: float, seen: set[int]
) -> None:
    generation = pytest.importorskip("transformers.generation.logits_process")
    options = GenerateOptions(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    found = distribution(penalised(logits(seed), seen, penalty), options)
    prompt, scores = torch.tensor([sorted(seen)]), logits(seed)[None].clone()
    chain = [generation.RepetitionPenaltyLogitsProcessor(penalty), generation.TemperatureLogitsWarper(temperature)]
    chain += [generation.TopKLogitsWarper(top_k)] if top_k else []
    chain += [generation.TopPLogitsWarper(top_p)] if top_p < 1 else []
    for processor in chain:
        scores = processor(prompt, scores)
    torch.testing.assert_close(found, scores[0].softmax(-1), rtol=1e-5, atol=1e-7)


def test_at_least_one_token_stays() -> None:
    flat = torch.zeros(V)
    assert distribution(flat, GenerateOptions(temperature=1.0, top_p=1e-6)).count_nonzero() == 1
    assert distribution(logits(0), GenerateOptions(temperature=1.0, top_k=1)).max() == 1


def test_the_penalty_leaves_the_network_s_logits_alone() -> None:
    given_logits = logits(0)
    before = given_logits.clone()
    penalised(given_logits, {1, 2}, 1.5)
    assert torch.equal(given_logits, before)


def draws(options: GenerateOptions, name: object, count: int = 30) -> list[int]:
    sampler = Sampler(options, [1, 2, 3], name)
    return [sampler.pick(logits(i)) for i in range(count)]


def test_a_seed_and_a_name_decide_the_draws() -> None:
    options = GenerateOptions(temperature=1.5, seed=7)
    first = draws(options, 0)
    torch.rand(5)
    assert draws(options, 0) == first
    assert draws(options, 1) != first and draws(GenerateOptions(temperature=1.5, seed=8), 0) != first


def test_temperature_zero_takes_the_most_likely_and_draws_nothing() -> None:
    assert (
        draws(GenerateOptions(), 0) == [int(logits(i).argmax()) for i in range(30)] == draws(GenerateOptions(seed=9), 5)
    )


def test_what_was_said_is_penalised_too() -> None:
    """One peak, then a penalty that makes it the second choice."""
    peaked = torch.zeros(V)
    peaked[4], peaked[5] = 2.0, 1.9
    sampler = Sampler(GenerateOptions(repetition_penalty=1.2), [0], 0)
    assert [sampler.pick(peaked), sampler.pick(peaked)] == [4, 5]


def test_draws_follow_the_distribution() -> None:
    options = GenerateOptions(temperature=1.0)
    sampler, scores = Sampler(options, [], 0), torch.tensor([1.0, 2.0, 0.0])
    counts = torch.bincount(torch.tensor([sampler.pick(scores) for _ in range(4000)]), minlength=3) / 4000
    torch.testing.assert_close(counts, distribution(scores, options), rtol=0, atol=0.03)
