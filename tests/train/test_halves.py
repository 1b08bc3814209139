"""Two halves of a row have its loss and its gradients, whatever is shared in it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet.base.nouns import Batch, Example
from lorikeet.data.pack import pack_row
from lorikeet.train.halves import conversations as texts_of
from lorikeet.train.halves import halves
from parity import tiny
from parity.test_step import packed, some_conversations
from parity.trees import conversations


def quarters(row: Batch) -> list[Batch]:
    return [part for half in halves(row) or (row,) for part in halves(half) or (half,)]


@given(conversations(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_halves_of_any_tree_are_the_row(examples: list[Example], share: bool) -> None:
    network = tiny.decoder(layers=1)
    parameters = tiny.with_lora(network)
    (row,) = packed(examples, share=share)
    parts = quarters(row)
    whole, both = (tiny.loss_and_gradients(network, parameters, rows) for rows in ([row], parts))
    assert both[0] == pytest.approx(whole[0], rel=1e-9)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(both[1][name], gradient, rtol=1e-8, atol=1e-11)
    assert sum(part.source_tokens for part in parts) == row.source_tokens, "limits.tokens counts them"
    assert sum(part.total_weight for part in parts) == pytest.approx(row.total_weight, rel=1e-6)
    assert max(len(part.tokens) for part in parts) <= len(row.tokens)
    for part in parts:
        assert (part.positions[part.visible_until == torch.arange(1, len(part.tokens) + 1)] >= 0).all()
        assert int(part.visible_until.max()) == len(part.tokens)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("share", [True, False])
def test_halves_are_shorter_and_exact(share: bool, window: int | None) -> None:
    network = tiny.decoder(window=window)
    parameters = tiny.with_lora(network)
    (row,) = packed(some_conversations(), share=share)
    first, second = halves(row) or ()
    assert max(len(first.tokens), len(second.tokens)) < 0.7 * len(row.tokens)
    assert (sum(len(part.tokens) for part in quarters(row)) > len(row.tokens)) == share
    assert first.source_tokens + second.source_tokens == row.source_tokens
    both = tiny.loss_and_gradients(network, parameters, [first, second])
    tiny.assert_same(tiny.loss_and_gradients(network, parameters, [row]), both)


def test_a_half_that_is_left_out_is_counted_all_the_same() -> None:
    """The second conversation's one trained token is predicted by the prefix that both share."""
    prefix = list(range(10))
    last = tiny.example([*prefix, 12, 13, 14, 15], [0.0] * 10 + [1.0, 0.0, 0.0, 0.0])
    row = pack_row([tiny.example([*prefix, 11]), last])
    (part,) = halves(row) or ()
    assert len(part.targets) == len(row.targets) and len(part.tokens) < len(row.tokens)
    assert part.source_tokens == row.source_tokens == 25


def test_one_conversation_cannot_be_cut() -> None:
    (row,) = packed([tiny.example(list(range(12)))], share=True)
    assert halves(row) is None


def test_the_conversations_of_a_row_are_found_again() -> None:
    examples = some_conversations()
    (row,) = packed(examples, share=True)
    found = {tuple(row.tokens[index].tolist()) for index in texts_of(row)}
    given_ = [tuple(one.tokens.tolist()) for one in examples]
    leaves = {one for one in given_ if not any(other[: len(one)] == one and other != one for other in given_)}
    assert found == leaves
