"""Texts come and go in a cache: what follows each is what a lone reading of it gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorikeet.base.errors import LorikeetError
from lorikeet.infer.reading import Reading, Text
from lorikeet.models.cache_views import rounded_rows
from lorikeet.models.kv_cache import PAGE
from lorikeet.ops.attention import PackedView
from parity import tiny


def alone(network: tiny.Decoder, text: list[int]) -> torch.Tensor:
    positions = torch.arange(len(text))
    view = PackedView(torch.full((len(text),), len(text), dtype=torch.int32), positions)
    return network.hidden(torch.tensor(text), positions, view)[-1]


def compare(network: tiny.Decoder, states: torch.Tensor, texts: list[Text]) -> None:
    assert len(states) == len(texts)
    for found, text in zip(states, texts):
        torch.testing.assert_close(found, alone(network, text.ids), rtol=1e-9, atol=1e-9)


def begin(reading: Reading, ids: list[int], most: int = 120, forks: int = 0) -> Text:
    text = reading.begin(ids, most, forks=forks)
    assert text is not None
    return text


@pytest.mark.parametrize("begun", [0, 6, 2 * PAGE + 3])
@pytest.mark.parametrize("options", [{}, {"window": 5}])
@torch.no_grad()
def test_each_text_is_answered_as_if_alone_while_others_come_and_go(options: dict, begun: int) -> None:
    network, rng = tiny.decoder(max_position=200, **options), np.random.default_rng(1)
    tiny.with_lora(network)
    start = tiny.random_tokens(rng, begun)
    new = [start + tiny.random_tokens(rng, size) for size in (4, 40, 1, 7, 12, 2, 5)]
    reading, live = Reading(network, 3 * 128), list[Text]()
    for leaving in (None, 0, 1, 1, None, 0, 0, 0):
        if leaving is not None:
            reading.end(live.pop(leaving))
        fresh = [begin(reading, new.pop()) for _ in range(min(3 - len(live), len(new), 2))]
        if fresh:
            read = reading.read(fresh, [text.unread for text in fresh])
            compare(network, read.states[read.last], fresh)
            live += fresh
        for _ in range(3):
            for text, token in zip(live, tiny.random_tokens(rng, len(live))):
                text.ids.append(token)
            compare(network, reading.go_on(live), live)


@torch.no_grad()
def test_a_prompt_is_read_in_pieces_beside_others() -> None:
    network, rng = tiny.decoder(max_position=200, window=50), np.random.default_rng(2)
    reading = Reading(network, 400)
    long, short = (begin(reading, tiny.random_tokens(rng, size)) for size in (100, 9))
    reading.read([long], [41])
    read = reading.read([long, short], [30, 9])
    compare(network, read.states[read.last[1:]], [short])
    read = reading.read([long], [29])
    compare(network, read.states[read.last], [long])


@torch.no_grad()
def test_what_was_read_before_is_not_computed_again() -> None:
    network, rng = tiny.decoder(max_position=200), np.random.default_rng(3)
    reading, start = Reading(network, 6 * PAGE), tiny.random_tokens(rng, 2 * PAGE + 5)
    first = begin(reading, start, 3 * PAGE)
    reading.read([first], [first.unread])
    second = begin(reading, [*start, 1, 2], 3 * PAGE)  # while the first is still there
    assert second.place.length == 2 * PAGE and second.place.pages == first.place.pages[:2]
    read = reading.read([second], [second.unread])
    assert len(read.states) == 7
    compare(network, read.states[read.last], [second])
    reading.end(first)
    reading.end(second)
    third = begin(reading, start, 3 * PAGE)  # and when both are over
    assert third.place.length == 2 * PAGE
    assert begin(reading, start[:PAGE], 2 * PAGE).place.length == 0, "a token must be left to compute"
    other = reading.begin(start, 3 * PAGE, b"an adapter")
    assert other is None or other.place.length == 0


@torch.no_grad()
def test_room_is_given_only_where_it_lasts_to_the_end() -> None:
    network, rng = tiny.decoder(), np.random.default_rng(4)
    reading = Reading(network, 4 * PAGE)
    text = begin(reading, tiny.random_tokens(rng, 3), 3 * PAGE)
    assert reading.begin([1, 2], 2 * PAGE) is None, "the first may still grow"
    small = begin(reading, [1, 2], PAGE)
    assert reading.begin([1], 1) is None
    reading.end(text)
    begin(reading, [1, 2], 3 * PAGE)
    reading.end(small)


@pytest.mark.parametrize("length", [PAGE - 1, PAGE, 2 * PAGE + 7])
@torch.no_grad()
def test_a_fork_goes_on_by_itself(length: int) -> None:
    network, rng = tiny.decoder(max_position=200), np.random.default_rng(5)
    reading = Reading(network, 12 * PAGE)
    text = begin(reading, tiny.random_tokens(rng, length), forks=1)
    reading.read([text], [length])
    twin = reading.fork(text)
    for tokens in ((1, 2), (3, 4), (5, 5)):
        for one, token in zip((text, twin), tokens):
            one.ids.append(token)
        compare(network, reading.go_on([text, twin]), [text, twin])
    reading.end(text)
    twin.ids.append(7)
    compare(network, reading.go_on([twin]), [twin])
    reading.end(twin)
    assert reading.begin([1], 12 * PAGE) is not None


def test_few_sizes_of_rows_occur() -> None:
    sizes = [rounded_rows(rows) for rows in range(1, 65)]
    assert all(size >= rows for rows, size in enumerate(sizes, 1)) and sorted(sizes) == sizes
    assert sorted(set(sizes)) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]


@pytest.mark.parametrize("tokens", [10**13, 10**17, 10**30])
def test_more_tokens_than_memory_holds_are_refused_with_their_size(tokens: int) -> None:
    with pytest.raises(
        LorikeetError, match=r"no room for the keys and values[\s\S]*tokens, [\d.e+]+ GiB[\s\S]*batch_size"
    ):
        Reading(tiny.decoder(max_position=200), tokens)
