"""The sampler's arithmetic is transformers'; a seed decides a reply."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from infer.conftest import END, ByteTokenizer
from lorikeet.base.errors import RecipeError
from lorikeet.infer.sampling import GenerateOptions, Sampler, distribution, penalised, pick_each

V = 40


def logits(seed: int, size: int = V) -> torch.Tensor:
    return 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


@lru_cache
def transformers_model() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    return transformers.LlamaForCausalLM(config)


def transformers_chain(options: GenerateOptions, prompt: int) -> Any:
    """The processors that `generate` makes of the options, in its own order."""
    model, bias = transformers_model(), {(id,): value for id, value in options.logit_bias.items()}
    config = type(model.generation_config)(
        do_sample=True, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
        min_p=options.min_p or None, repetition_penalty=options.repetition_penalty, sequence_bias=bias or None,
    )  # fmt: skip
    return model._get_logits_processor(config, input_ids_seq_length=prompt)


OPTIONS: dict[str, Any] = {
    "temperature": st.floats(0.2, 3),
    "top_k": st.sampled_from([0, 1, 5, V, V + 5]),
    "top_p": st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    "min_p": st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    "repetition_penalty": st.sampled_from([1.0, 0.7, 1.5]),
    "logit_bias": st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100).filter(bool), max_size=4),
}


@given(st.integers(0, 99), st.fixed_dictionaries(OPTIONS), st.lists(st.integers(0, V - 1), min_size=1, max_size=6))
@settings(max_examples=80, deadline=None)
def test_the_distribution_equals_transformers(seed: int, chosen: dict[str, Any], seen: list[int]) -> None:
    options = GenerateOptions(**chosen)
    found = distribution(Sampler(options, seen, 0).scores(logits(seed)), options)
    scores = transformers_chain(options, len(seen))(torch.tensor([seen]), logits(seed)[None].clone())
    expected = scores[0].softmax(-1)
    # a token whose probability is the border itself falls to one side here and to the other there
    border = (found > 0) != (expected > 0)
    assert border.sum() <= 1
    if not border.any():
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_top_p_over_a_large_vocabulary_equals_sorting_all_of_it() -> None:
    """Only the likeliest are looked at, unless they are not enough."""
    for spread, top_p in [(6.0, 0.9), (0.01, 0.9), (0.01, 0.02), (1.0, 0.999)]:
        scores = spread * logits(3, 5000)
        ordered, index = scores.softmax(-1).sort(descending=True)
        kept = index[(ordered.double().cumsum(-1) - ordered) < top_p]
        found = distribution(scores, GenerateOptions(temperature=1.0, top_p=top_p)).nonzero()[:, 0]
        assert abs(len(found) - len(kept)) <= 1 + len(kept) // 500
        assert set(found.tolist()) <= set(index[: len(kept) + 1 + len(kept) // 500].tolist())


def test_at_least_one_token_stays() -> None:
    flat = torch.zeros(V)
    assert distribution(flat, GenerateOptions(temperature=1.0, top_p=1e-6)).count_nonzero() == 1
    assert distribution(logits(0), GenerateOptions(temperature=1.0, top_k=1)).max() == 1
    assert distribution(logits(0), GenerateOptions(temperature=1.0, min_p=1.0)).max() == 1


def test_presence_and_frequency_penalties_are_openai_s() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, c counted in the reply."""
    sampler = Sampler(GenerateOptions(presence_penalty=0.5, frequency_penalty=0.25), [7, 8], 0)
    for token in (3, 5, 3):
        sampler.take(token)
    expected = logits(0)
    expected[3] -= 0.5 + 2 * 0.25
    expected[5] -= 0.5 + 0.25
    torch.testing.assert_close(sampler.scores(logits(0)), expected)


def test_a_bias_bans_a_token_and_makes_one_the_only_one() -> None:
    scores = logits(1)
    best = int(scores.argmax())
    assert Sampler(GenerateOptions(logit_bias={best: -100}), [], 0).pick(scores) != best
    assert Sampler(GenerateOptions(logit_bias={9: 100}, temperature=1.0), [], 0).pick(scores) == 9
    with pytest.raises(RecipeError, match="logit_bias: no token has this id"):
        Sampler(GenerateOptions(logit_bias={300: 1}), [], 0, ByteTokenizer())


def test_the_penalty_leaves_the_network_s_logits_alone() -> None:
    given_logits = logits(0)
    before = given_logits.clone()
    penalised(given_logits, {1, 2}, 1.5)
    options = GenerateOptions(repetition_penalty=2, presence_penalty=1, logit_bias={3: 5})
    sampler = Sampler(options, [1, 2], 0)
    sampler.take(4)
    sampler.pick(given_logits)
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
    for penalty in ({"repetition_penalty": 1.2}, {"presence_penalty": 0.2}, {"frequency_penalty": 0.2}):
        sampler = Sampler(GenerateOptions(**penalty), [0], 0)
        assert [sampler.pick(peaked), sampler.pick(peaked)] == [4, 5]


def test_a_fork_remembers_the_same_and_goes_its_own_way() -> None:
    peaked = torch.zeros(V)
    peaked[4], peaked[5], peaked[6] = 2.0, 1.9, 1.8
    sampler = Sampler(GenerateOptions(frequency_penalty=0.2), [], 0)
    sampler.take(4)
    twin = sampler.fork()
    twin.take(5)
    assert (sampler.pick(peaked), twin.pick(peaked)) == (5, 4)


def test_draws_follow_the_distribution() -> None:
    options = GenerateOptions(temperature=1.0)
    sampler, scores = Sampler(options, [], 0), torch.tensor([1.0, 2.0, 0.0])
    counts = torch.bincount(torch.tensor([sampler.pick(scores) for _ in range(4000)]), minlength=3) / 4000
    torch.testing.assert_close(counts, distribution(scores, options), rtol=0, atol=0.03)


def test_each_reply_of_a_batch_is_chosen_by_its_own_options() -> None:
    rows = torch.stack([logits(i, END + 1) for i in range(4)])
    chosen = [{}, {"logit_bias": {5: 100}}, {"logprobs": 1}, {"temperature": 1.2, "seed": 3}]
    samplers = [Sampler(GenerateOptions(**options), [1], 0, ByteTokenizer()) for options in chosen]
    alone = [
        Sampler(GenerateOptions(**options), [1], 0, ByteTokenizer()).pick(row) for options, row in zip(chosen, rows)
    ]
    assert pick_each(rows, samplers) == alone
    assert [sampler.logprob is not None for sampler in samplers] == [False, False, True, False]
    assert alone[0] == int(rows[0].argmax()) and alone[1] == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_p": 1.5}, "less than or equal to 1"),
        ({"presence_penalty": 3}, "less than or equal to 2"),
        ({"frequency_penalty": -2.5}, "greater than or equal to -2"),
        ({"logit_bias": {"a": 1}}, "valid integer"),
        ({"logit_bias": {"1": 101}}, "less than or equal to 100"),
        ({"logprobs": -1}, "greater than or equal to 0"),
        ({"num_beams": 0}, "greater than or equal to 1"),
        ({"num_beams": 2, "temperature": 0.5}, "temperature must be 0"),
        ({"num_beams": 2, "logprobs": 1}, "without num_beams"),
        ({"early_stopping": "sometimes"}, "never"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        GenerateOptions(**options)


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-38, 1e-9, 1e30])
def test_every_temperature_gives_probabilities(temperature: float) -> None:
    logits = torch.tensor([1e4, -1e4, 3.0, 1e4 - 1, -math.inf])
    found = distribution(logits, GenerateOptions(temperature=temperature, top_k=4, top_p=0.99, min_p=0.01))
    assert bool(torch.isfinite(found).all()) and float(found.sum()) == pytest.approx(1)
    assert int(found.argmax()) == 0 and (temperature > 1 or float(found[0]) == 1)


@pytest.mark.parametrize("penalty", [0.0, 5e-324, 0.001, 1e30, math.inf])
def test_a_penalty_that_makes_logits_infinite_is_refused(penalty: float) -> None:
    with pytest.raises(ValidationError):
        GenerateOptions(repetition_penalty=penalty)
