"""However a step is laid out and computed, its loss and every gradient are the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorikeet.base.nouns import Batch, Example
from lorikeet.data.pack import pack_row, plan_rows, plan_step
from lorikeet.models import causal_lm
from lorikeet.models.experts import ExpertSizes
from lorikeet.ops import linear_cross_entropy
from lorikeet.ops.attention import PackedView, reference_attention
from lorikeet.train import noise as noise_module
from lorikeet.train import step
from parity import tiny
from parity.trees import conversations

NETWORKS = {
    "tied": {},
    "untied with biases": {"tied": False, "bias": True},
    "one key head": {"heads": 3, "kv_heads": 1},
    "windowed": {"window": 5},
    "experts": {"experts": ExpertSizes(count=5, chosen=2, width=12, normalised=True)},
}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS.keys())
def network(request: pytest.FixtureRequest) -> tiny.Decoder:
    return tiny.decoder(**request.param)


def separate(examples: list[Example]) -> list[Batch]:
    return [pack_row([one], share=False) for one in examples]


def packed(examples: list[Example], *, share: bool, row_tokens: int = 10_000) -> list[Batch]:
    return [pack_row(row, share=share) for row in plan_rows(examples, row_tokens=row_tokens, share=share)]


def some_conversations(seed: int = 0) -> list[Example]:
    """Different lengths; a shared system prompt, a nested second branch, a duplicate, and trained tokens inside."""
    rng = np.random.default_rng(seed)
    system, turn = tiny.random_tokens(rng, 6), tiny.random_tokens(rng, 5)
    found = [
        system + tiny.random_tokens(rng, 4),
        system + turn + tiny.random_tokens(rng, 3),
        system + turn + tiny.random_tokens(rng, 9),
        system + turn,
        tiny.random_tokens(rng, 13),
        tiny.random_tokens(rng, 2),
    ]
    found.append(found[1])
    return [tiny.example(tokens, rng.choice([0, 0.25, 1.0], len(tokens) - 1).tolist() + [1.0]) for tokens in found]


def test_packed_equals_separate(network: tiny.Decoder) -> None:
    parameters, examples = tiny.with_lora(network), some_conversations()
    batches = packed(examples, share=False)
    assert len(batches) == 1 and len(batches[0].tokens) == sum(len(one.tokens) for one in examples)
    together = tiny.loss_and_gradients(network, parameters, batches)
    tiny.assert_same(together, tiny.loss_and_gradients(network, parameters, separate(examples)))


def test_shared_prefix_equals_repeated_prefix(network: tiny.Decoder) -> None:
    parameters, examples = tiny.with_lora(network), some_conversations()
    shared, repeated = packed(examples, share=True), packed(examples, share=False)
    assert len(shared[0].tokens) < len(repeated[0].tokens)
    assert shared[0].total_weight == repeated[0].total_weight
    once = tiny.loss_and_gradients(network, parameters, shared)
    tiny.assert_same(once, tiny.loss_and_gradients(network, parameters, repeated))


@given(conversations(), st.integers(16, 40), st.sampled_from([None, 3]))
@settings(max_examples=25, deadline=None)
def test_any_tree_of_conversations_equals_its_conversations_one_by_one(
    examples: list[Example], row_tokens: int, window: int | None
) -> None:
    network = tiny.decoder(window=window, layers=1)
    parameters = tiny.with_lora(network)
    alone = tiny.loss_and_gradients(network, parameters, separate(examples))
    shared = tiny.loss_and_gradients(network, parameters, packed(examples, share=True, row_tokens=row_tokens))
    assert shared[0] == pytest.approx(alone[0], rel=1e-9)
    for name, gradient in alone[1].items():
        torch.testing.assert_close(shared[1][name], gradient, rtol=1e-8, atol=1e-11)


def test_hidden_states_of_a_tree_are_those_of_its_conversations() -> None:
    network, examples = tiny.decoder(), some_conversations(3)
    row = pack_row(plan_rows(examples, row_tokens=10_000)[0])
    view = PackedView(row.visible_until, row.positions)
    hidden = network.hidden(row.tokens, row.positions, view)
    expected = torch.cat(tiny.one_by_one(network, examples))
    for state in hidden:  # every state of the tree is the state of some conversation
        assert (expected - state).abs().amax(-1).min() < 1e-12


@pytest.mark.parametrize("row_tokens", [16, 30])
def test_accumulated_equals_one_batch(network: tiny.Decoder, row_tokens: int) -> None:
    parameters, examples = tiny.with_lora(network), some_conversations()
    parts, whole = packed(examples, share=True, row_tokens=row_tokens), packed(examples, share=True)
    assert len(parts) > 1 and len(whole) == 1
    accumulated = tiny.loss_and_gradients(network, parameters, parts)
    tiny.assert_same(accumulated, tiny.loss_and_gradients(network, parameters, whole))


def test_ranks_together_equal_one_device() -> None:
    """The micro-batches of two ranks, weightless fillers among them, run one after the other."""
    network, examples = tiny.decoder(), some_conversations()
    parameters = tiny.with_lora(network)
    plan = {"seed": 0, "epoch": 0, "step": 0, "examples_per_step": len(examples), "row_tokens": 16}
    ranks = plan_step(examples, world=2, **plan)
    both = tiny.loss_and_gradients(network, parameters, [batch for rank in ranks for batch in rank])
    tiny.assert_same(both, tiny.loss_and_gradients(network, parameters, plan_step(examples, **plan)[0]))


@pytest.mark.parametrize("multiple", [1, 7, 96])
def test_padding_changes_nothing(network: tiny.Decoder, multiple: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters, rows = tiny.with_lora(network), packed(some_conversations(), share=True)
    plain = tiny.loss_and_gradients(network, parameters, rows)
    monkeypatch.setattr(step, "ROUND", multiple)
    tiny.assert_same(plain, tiny.loss_and_gradients(network, parameters, rows))


@pytest.mark.parametrize("dtype, compiled, tokens, expected", [
    (torch.bfloat16, "pairs", 65, 96), (torch.bfloat16, None, 65, 128), (torch.float32, "pairs", 65, 128),
    (torch.bfloat16, "pairs", 5, 64), (torch.float32, None, 64, 64),
])  # fmt: skip
def test_rows_are_padded_to_what_the_products_take_at_once(
    dtype: torch.dtype, compiled: str | None, tokens: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step.kernels, "chosen", lambda: "auto")
    monkeypatch.setattr(step.linear, "computes_with", lambda: compiled)
    row = pack_row([tiny.example(list(range(1, tokens + 1)))], share=False)
    padded = step.rounded(row, tiny.decoder(dtype=dtype))
    assert len(row.tokens) == tokens and len(padded.tokens) == len(padded.positions) == expected
    assert len(padded.visible_until) == expected and len(padded.targets) == len(padded.weights) == 64
    assert padded.weights.sum() == row.weights.sum()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_checkpointed_equals_not_checkpointed(network: tiny.Decoder, dropout: float) -> None:
    """With dropout too: the second pass draws the same masks."""
    parameters, rows = tiny.with_lora(network, lora_dropout=dropout), packed(some_conversations(), share=not dropout)
    plain = tiny.loss_and_gradients(network, parameters, rows)
    tiny.assert_same(plain, tiny.loss_and_gradients(network, parameters, rows, checkpointing=True))
    tiny.assert_same(plain, tiny.loss_and_gradients(network, parameters, rows, checkpointing=1))  # the first layer


def test_dropout_is_decided_by_the_step_s_seed_alone() -> None:
    network = tiny.decoder()
    parameters, rows = tiny.with_lora(network, lora_dropout=0.4), packed(some_conversations(), share=False)
    first = tiny.loss_and_gradients(network, parameters, rows, seed=1)
    torch.rand(7)  # whatever else drew numbers in between
    again = tiny.loss_and_gradients(network, parameters, rows, seed=1)
    assert first[0] == again[0] and all(torch.equal(first[1][name], again[1][name]) for name in parameters)
    assert tiny.loss_and_gradients(network, parameters, rows, seed=2)[0] != first[0]


@pytest.mark.parametrize("chunk", [1, 4])
def test_chunked_loss_equals_full_logits(network: tiny.Decoder, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the step; the head's own gradients are compared beside the op."""
    parameters, rows = tiny.with_lora(network), packed(some_conversations(), share=True)

    def chunked(*inputs: Tensor, **options: object) -> linear_cross_entropy.HeadLoss:
        return linear_cross_entropy.linear_cross_entropy(*inputs, **(options | {"chunk": chunk}))  # type: ignore[arg-type]

    def full(*inputs: Tensor, **options: object) -> linear_cross_entropy.HeadLoss:
        options.pop("chunk", None)
        loss = linear_cross_entropy.reference_linear_cross_entropy(*inputs, **options)  # type: ignore[arg-type]
        return linear_cross_entropy.HeadLoss(loss, loss.detach(), loss.detach())

    monkeypatch.setattr(causal_lm, "linear_cross_entropy", chunked)
    pieces = tiny.loss_and_gradients(network, parameters, rows)
    monkeypatch.setattr(causal_lm, "linear_cross_entropy", full)
    tiny.assert_same(pieces, tiny.loss_and_gradients(network, parameters, rows))


class ReferenceView:
    """The rule as a dense mask, with torch's own gradients."""

    def __init__(self, visible_until: Tensor, positions: Tensor):
        self.row = (visible_until, positions)

    def wanted(self) -> None:
        return None

    def attend(self, _layer: int, q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        return reference_attention(q, k, v, *self.row, **options)  # type: ignore[arg-type]


def test_bucketed_attention_equals_reference_attention(network: tiny.Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters, rows = tiny.with_lora(network), packed(some_conversations(), share=True)
    bucketed = tiny.loss_and_gradients(network, parameters, rows)
    monkeypatch.setattr(noise_module, "PackedView", ReferenceView)
    tiny.assert_same(bucketed, tiny.loss_and_gradients(network, parameters, rows))
