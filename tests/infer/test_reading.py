"""Texts come and go in the rows of a cache: what follows each is what a lone reading of it gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorikeet.infer.reading import Reading, common_prefix
from lorikeet.models.kv_cache import KvCache, Prefill, rounded_rows
from lorikeet.ops.attention import PackedView
from parity import tiny


def alone(network: tiny.Decoder, text: list[int]) -> torch.Tensor:
    positions = torch.arange(len(text))
    view = PackedView(torch.full((len(text),), len(text), dtype=torch.int32), positions)
    return network.head.logits(network.hidden(torch.tensor(text), positions, view)[-1:])[0]


@pytest.mark.parametrize("begun", [0, 6])
@pytest.mark.parametrize("options", [{}, {"window": 5}])
@torch.no_grad()
def test_each_text_is_answered_as_if_alone_while_others_come_and_go(options: dict, begun: int) -> None:
    network, rng = tiny.decoder(**options), np.random.default_rng(1)
    tiny.with_lora(network)
    start = tiny.random_tokens(rng, begun)
    new = [start + tiny.random_tokens(rng, size) for size in (4, 9, 1, 7, 12, 2, 5)]
    reading, live = Reading(network, 3, 40, begun), list[list[int]]()

    def compare(logits: torch.Tensor, texts: list[list[int]]) -> None:
        for found, text in zip(logits, texts, strict=True):
            torch.testing.assert_close(found, alone(network, text), rtol=1e-9, atol=1e-9)

    for leaving in (None, 0, 1, 1, None, 0, 0, 0):
        if leaving is not None:
            reading.end(leaving)
            live[leaving] = live[-1]
            live.pop()
        fresh = [new.pop() for _ in range(min(reading.free, len(new), 2))]
        if fresh:
            compare(reading.read(fresh), fresh)
            live += fresh
        for _ in range(3):
            tokens = tiny.random_tokens(rng, len(live))
            live = [[*text, token] for text, token in zip(live, tokens)]
            compare(reading.go_on(tokens), live)
        compare(reading.again(live), live)


@torch.no_grad()
def test_what_all_texts_begin_with_is_computed_once() -> None:
    network, rng = tiny.decoder(), np.random.default_rng(2)
    start = tiny.random_tokens(rng, 8)
    cache = KvCache(network.shape, 3, 32, network.dtype, network.device)
    first = Prefill(cache, [[*start, 1, 2]], rows=[1])
    network.hidden(first.tokens, first.positions, first)
    second = Prefill(cache, [[*start, 3], [*start, 4, 5]], rows=[2, 0], begun=(1, 8))
    assert second.tokens.tolist() == [3, 4, 5] and second.positions.tolist() == [8, 8, 9]
    assert second.last.tolist() == [0, 2] and second.lengths().tolist() == [10, 10, 10]
    network.hidden(second.tokens, second.positions, second)
    for row in (0, 2):
        assert torch.equal(cache.keys[:, row, :, :8], cache.keys[:, 1, :, :8])
        assert torch.equal(cache.values[:, row, :, :8], cache.values[:, 1, :, :8])
    assert cache.lengths.tolist() == [10, 10, 9]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
def test_the_common_prefix_is_the_longest_that_leaves_each_text_a_token(texts: list[list[int]]) -> None:
    size = common_prefix(texts)
    shortest = min(map(len, texts))
    assert size < shortest and all(text[:size] == texts[0][:size] for text in texts)
    assert size + 1 == shortest or any(text[: size + 1] != texts[0][: size + 1] for text in texts)


def test_few_sizes_of_rows_occur() -> None:
    sizes = [rounded_rows(rows) for rows in range(1, 65)]
    assert all(size >= rows for rows, size in enumerate(sizes, 1)) and sorted(sizes) == sizes
    assert sorted(set(sizes)) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
