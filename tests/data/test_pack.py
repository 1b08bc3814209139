"""Packing: every token sees exactly its own conversation's beginning, and nothing of a step is lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet.base.nouns import Batch, Example
from lorikeet.data.pack import order, pack_row, plan_rows, plan_step, steps_per_epoch
from lorikeet.ops.attention import visible
from parity.tiny import example
from parity.trees import conversations


def texts_seen(row: Batch) -> list[tuple[int, ...]]:
    """For each token of the row, the tokens it can see, itself last."""
    seen = visible(row.visible_until, row.positions)
    return [tuple(row.tokens[mask].tolist()) for mask in seen]


def predictions(rows: list[Batch]) -> dict[tuple[tuple[int, ...], int], float]:
    """(what is seen, the target) -> the sum of weights: what a step trains, however it is laid out."""
    found: dict[tuple[tuple[int, ...], int], float] = {}
    for row in rows:
        seen = texts_seen(row)
        for at, target, weight in zip(row.predict_at.tolist(), row.targets.tolist(), row.weights.tolist()):
            found[seen[at], target] = found.get((seen[at], target), 0.0) + weight
    return found


def expected_predictions(examples: list[Example]) -> dict[tuple[tuple[int, ...], int], float]:
    found: dict[tuple[tuple[int, ...], int], float] = {}
    for one in examples:
        tokens = one.tokens.tolist()
        for i, weight in enumerate(one.weights.tolist()):
            if weight:
                key = (tuple(tokens[:i]), tokens[i])
                found[key] = found.get(key, 0.0) + weight
    return found


@given(conversations(most=9, vocab=4), st.integers(2, 40), st.booleans())
@settings(max_examples=150, deadline=None)
def test_each_token_sees_exactly_its_own_beginning_and_each_trained_token_is_predicted_from_it(
    examples: list[Example], row_tokens: int, share: bool
) -> None:
    rows = [pack_row(row, share=share) for row in plan_rows(examples, row_tokens=row_tokens, share=share)]
    beginnings = {tuple(one.tokens[:i].tolist()) for one in examples for i in range(1, len(one.tokens) + 1)}
    for row in rows:
        for position, seen in zip(row.positions.tolist(), texts_seen(row)):
            assert seen in beginnings and len(seen) == position + 1
    assert predictions(rows) == expected_predictions(examples)
    assert sum(row.source_tokens for row in rows) == sum(len(one.tokens) for one in examples)
    weight = sum(float(one.weights.sum()) for one in examples)
    assert sum(row.total_weight for row in rows) == pytest.approx(weight)
    assert all(row.total_weight == pytest.approx(row.weights.sum().item()) for row in rows)


@given(conversations(most=9, vocab=4), st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_no_row_is_longer_than_allowed_unless_one_conversation_is(examples: list[Example], row_tokens: int) -> None:
    for row in plan_rows(examples, row_tokens=row_tokens):
        assert len(pack_row(row).tokens) <= row_tokens or len(row) == 1


@given(conversations(most=9, vocab=3))
@settings(max_examples=60, deadline=None)
def test_a_shared_prefix_of_four_or_more_is_laid_out_once(examples: list[Example]) -> None:
    (row,) = plan_rows(examples, row_tokens=1 << 20)
    laid_out = [tuple(one.tokens.tolist()) for one in row]
    size = 0
    for i, text in enumerate(laid_out):
        common = 0
        while i and common < min(len(text), len(laid_out[i - 1])) and text[common] == laid_out[i - 1][common]:
            common += 1
        size += len(text) - (common if common >= 4 else 0)
    assert len(pack_row(row).tokens) == size
    assert len(pack_row(row, share=False).tokens) == sum(map(len, laid_out))


def test_the_row_of_the_architecture_page() -> None:
    p, a, b = [9, 8, 7, 6], [1, 2], [3, 4, 5]
    row = pack_row([example(p + a, [0, 0, 0, 0, 1, 1]), example(p + b, [0, 0, 0, 0, 1, 1, 1])])
    assert row.tokens.tolist() == p + a + b
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6]
    assert row.visible_until.tolist() == [9, 9, 9, 9, 6, 6, 9, 9, 9]
    assert row.predict_at.tolist() == [3, 4, 3, 6, 7]
    assert row.targets.tolist() == a + b
    assert row.source_tokens == 13 and row.total_weight == 5


def test_a_duplicate_adds_its_weight_and_no_token() -> None:
    text = [5, 4, 3, 2, 1]
    row = pack_row([example(text, [0, 0, 0, 0.5, 1]), example(text, [0, 0, 0, 0.25, 1])])
    assert row.tokens.tolist() == text and row.weights.tolist() == [0.75, 2.0]
    assert row.total_weight == 2.75 and row.source_tokens == 10


def test_dtypes_are_the_contract_s() -> None:
    row = pack_row([example([1, 2, 3])])
    longs = (row.tokens, row.positions, row.predict_at, row.targets)
    assert all(tensor.dtype == torch.int64 for tensor in longs)
    assert row.visible_until.dtype == torch.int32 and row.weights.dtype == torch.float32


def many(count: int = 23) -> list[Example]:
    rng = np.random.default_rng(0)
    return [example([i, *rng.integers(0, 9, rng.integers(1, 30)).tolist()]) for i in range(count)]


def first_tokens(ranks: list[list[Batch]]) -> list[int]:
    """Each conversation of `many` begins with its own number."""
    rows = [row for rank in ranks for row in rank if row.total_weight]
    return [token for row in rows for token in row.tokens[row.positions == 0].tolist()]


@given(st.integers(1, 30), st.integers(16, 90), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_an_epoch_has_every_conversation_once_and_ranks_do_equal_numbers_of_passes(
    per_step: int, row_tokens: int, world: int
) -> None:
    examples, seen = many(), []
    for step in range(steps_per_epoch(len(examples), per_step)):
        ranks = plan_step(
            examples, seed=3, epoch=1, step=step, examples_per_step=per_step, row_tokens=row_tokens, world=world
        )
        assert len(ranks) == world and len({len(rank) for rank in ranks}) == 1
        chosen = first_tokens(ranks)
        assert len(chosen) == min(per_step, len(examples) - step * per_step)
        weight = sum(float(examples[i].weights.sum()) for i in chosen)
        assert sum(row.total_weight for rank in ranks for row in rank) == pytest.approx(weight)
        seen += chosen
    assert sorted(seen) == list(range(len(examples)))


def test_ranks_together_have_what_one_device_has() -> None:
    plan = {"seed": 0, "epoch": 0, "step": 1, "examples_per_step": 9, "row_tokens": 32}
    (alone,), three = plan_step(many(), **plan), plan_step(many(), world=3, **plan)
    assert predictions(alone) == predictions([row for rank in three for row in rank if row.total_weight])


def test_a_plan_is_a_pure_function_of_seed_epoch_and_step() -> None:
    def tokens(**changed: int) -> list[list[int]]:
        plan = {"seed": 0, "epoch": 0, "step": 0, "examples_per_step": 8, "row_tokens": 64} | changed
        return [row.tokens.tolist() for row in plan_step(many(), **plan)[0]]

    assert tokens() == tokens()
    assert tokens() != tokens(seed=1) and tokens() != tokens(epoch=1) and tokens() != tokens(step=1)


def test_an_epoch_s_order_is_a_permutation_that_changes_with_the_epoch() -> None:
    first, second = order(50, 0, 0), order(50, 0, 1)
    assert sorted(first) == sorted(second) == list(range(50)) and first.tolist() != second.tolist()


@given(st.integers(1, 200), st.integers(1, 50))
def test_no_conversation_is_dropped_at_an_epoch_s_end(examples: int, per_step: int) -> None:
    assert steps_per_epoch(examples, per_step) == math.ceil(examples / per_step)


def test_rows_of_a_step_are_of_about_equal_size() -> None:
    examples = [example([i % 50, i // 50, *range(18)]) for i in range(40)]
    sizes = [sum(len(one.tokens) for one in row) for row in plan_rows(examples, row_tokens=300, share=False)]
    assert len(sizes) == 3 and max(sizes) - min(sizes) <= 40
