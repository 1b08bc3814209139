"""NEFTune, dropout of embeddings and of attention: what they do, that packing does not change it, and that it is drawn
for each step and conversation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lorikeet.base.errors import RecipeError
from lorikeet.base.nouns import Batch, Example
from lorikeet.data.pack import pack_row
from lorikeet.ops.attention import PackedView, reference_attention
from lorikeet.ops.dropped_attention import DroppedView, Text, reference_dropped_attention
from lorikeet.train.evaluate import evaluate
from lorikeet.train.noise import NoiseOptions, disturbed, texts
from lorikeet.train.optim import Stepper
from lorikeet.train.options import TrainOptions
from lorikeet.train.step import train_step
from parity import tiny

EACH: list[dict[str, Any]] = [{"neftune_noise_alpha": 5.0}, {"embedding_dropout": 0.4}, {"attention_dropout": 0.4}]
IDS = [next(iter(one)) for one in EACH]


def conversations() -> list[Example]:
    return [tiny.example([(3 * i + j) % tiny.VOCAB for j in range(5 + 3 * i)]) for i in range(3)]


def row(*chosen: Example) -> Batch:
    return pack_row(chosen, share=False)


def step(batches: Sequence[Batch], options: dict[str, Any], seed: int = 7, **built: Any) -> tiny.Computed:
    model = tiny.decoder(**built)
    parameters = tiny.with_lora(model)
    told = TrainOptions(optim="sgd", max_grad_norm=0, **options)
    result = train_step(model, Stepper(parameters, told), batches, learning_rate=0.0, seed=seed, noise=told)
    return result.loss, {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("options", EACH, ids=IDS)
def test_packed_equals_separate_with_noise(options: dict[str, Any]) -> None:
    a, b, c = conversations()
    tiny.assert_same(step([row(a, b, c)], options), step([row(c), row(b, a)], options))


@pytest.mark.parametrize("options", EACH, ids=IDS)
def test_checkpointed_layers_draw_the_same(options: dict[str, Any]) -> None:
    batch = row(*conversations())
    model = tiny.decoder()
    parameters = tiny.with_lora(model)
    model.gradient_checkpointing = True
    told = TrainOptions(optim="sgd", max_grad_norm=0, **options)
    result = train_step(model, Stepper(parameters, told), [batch], learning_rate=0.0, seed=7, noise=told)
    tiny.assert_same((result.loss, {n: p.grad for n, p in parameters.items()}), step([batch], options))  # type: ignore[misc]


@pytest.mark.parametrize("options", EACH, ids=IDS)
def test_each_step_draws_anew_and_no_draw_is_left_to_chance(options: dict[str, Any]) -> None:
    batch = row(*conversations())
    torch.manual_seed(1)
    first = step([batch], options)
    torch.manual_seed(2)
    assert step([batch], options)[0] == first[0]
    assert step([batch], options, seed=8)[0] != first[0] != step([batch], {})[0]


@pytest.mark.parametrize("options", EACH, ids=IDS)
def test_evaluation_knows_no_noise(options: dict[str, Any]) -> None:
    model, batch = tiny.decoder(), row(*conversations())
    before = evaluate(model, [batch])
    told = TrainOptions(learning_rate=1e-9, **options)
    train_step(model, Stepper({}, told), [batch], learning_rate=0.0, seed=1, noise=told)
    assert evaluate(model, [batch]) == before and not model.embedder()._forward_hooks


def test_noise_is_within_alpha_over_the_root_of_the_conversation_s_size() -> None:
    rows, found = torch.zeros(40, 64), [Text(0, 8, 1), Text(8, 40, 2)]
    noise = disturbed(rows, found, NoiseOptions(neftune_noise_alpha=5.0))
    for text in found:
        most, part = 5.0 / math.sqrt(text.length * 64), noise[text.start : text.stop]
        assert 0.98 * most < part.abs().max() <= most
        assert part.mean().abs() < 0.1 * most and part.std() == pytest.approx(most / math.sqrt(3), rel=0.05)


def test_dropped_embeddings_keep_their_mean() -> None:
    rows = disturbed(torch.ones(200, 50), [Text(0, 200, 3)], NoiseOptions(embedding_dropout=0.25))
    assert sorted(rows.unique().tolist()) == [0.0, pytest.approx(4 / 3)]
    assert rows.mean().item() == pytest.approx(1.0, abs=0.02)


def qkv(length: int, heads: int = 4, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(length, count, 6, generator=generator, dtype=torch.float64) for count in (heads, kv_heads, kv_heads)
    )  # type: ignore[return-value]


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"softcap": 1.5}])
def test_nothing_dropped_equals_attention(options: dict[str, Any]) -> None:
    batch = row(*conversations())
    q, k, v = qkv(len(batch.tokens))
    view = DroppedView(batch.visible_until, batch.positions, texts(batch, 0), 0.0)
    expected = reference_attention(q, k, v, batch.visible_until, batch.positions, scale=0.4, **options)
    torch.testing.assert_close(view.attend(0, q, k, v, scale=0.4, **options), expected)


def test_dropped_attention_is_a_mean_over_masks_of_attention() -> None:
    q, k, v = qkv(6)
    expected = PackedView(torch.full((6,), 6, dtype=torch.int32), torch.arange(6)).attend(0, q, k, v, scale=0.4)
    draws = [
        DroppedView(torch.full((6,), 6, dtype=torch.int32), torch.arange(6), [Text(0, 6, seed)], 0.3).attend(
            0, q, k, v, scale=0.4
        )
        for seed in range(600)
    ]
    torch.testing.assert_close(torch.stack(draws).mean(0), expected, atol=0.2, rtol=0.0)
    assert (draws[0] - draws[1]).abs().max() > 0.1


def test_a_prefix_stands_before_every_text() -> None:
    q, k, v = qkv(5)
    keep = torch.ones(2, 5, 7, dtype=torch.float64)
    ahead = qkv(2)
    head = reference_dropped_attention(
        q[:, :2], torch.cat([ahead[1][:, 0], k[:, 0]]), torch.cat([ahead[2][:, 0], v[:, 0]]), keep, scale=0.4
    )
    view = DroppedView(torch.full((5,), 5, dtype=torch.int32), torch.arange(5), [Text(0, 5, 0)], 0.0)
    torch.testing.assert_close(view.attend(0, q, k, v, scale=0.4, prefix=ahead[1:])[:, :2], head)


def test_a_network_that_attends_by_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.decoder()
    monkeypatch.setattr(model, "hidden", lambda tokens, positions, view: model.embedding(tokens))
    told = TrainOptions(attention_dropout=0.1)
    with pytest.raises(RecipeError, match="where nothing can be dropped"):
        train_step(model, Stepper({}, told), [row(*conversations())], learning_rate=0.0, noise=told)


def test_tokens_that_are_no_row_s_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.decoder()
    inner = model.embedding
    monkeypatch.setattr(model, "hidden", lambda tokens, positions, view: inner(torch.cat([tokens[:2], tokens])))
    told = TrainOptions(neftune_noise_alpha=5.0)
    with pytest.raises(RecipeError, match="tokens enter this network that are no row's"):
        train_step(model, Stepper({}, told), [row(*conversations())], learning_rate=0.0, noise=told)


@pytest.mark.parametrize(
    "wrong",
    [
        {"neftune_noise_alpha": -1},
        {"embedding_dropout": 1.0},
        {"attention_dropout": -0.1},
        {"label_smoothing_factor": 1.0},
        {"neftune_noise_alpha": float("nan")},
    ],
)
def test_shares_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainOptions(**wrong)
