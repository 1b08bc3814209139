"""Reading token by token through the cache gives the logits of reading everything at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorikeet.models.cache_views import Decode, Prefill
from parity import tiny

LENGTHS = [3, 11, 1, 7]


def full_logits(network: tiny.Decoder, tokens: list[int]) -> torch.Tensor:
    (hidden,) = tiny.one_by_one(network, [tiny.example(tokens)])
    return network.head.logits(hidden)


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"heads": 3, "kv_heads": 1, "bias": True, "tied": False}])
@torch.no_grad()
def test_decoding_with_the_cache_equals_the_full_forward(options: dict) -> None:
    """Rows of different lengths; two leave on the way, one of them the longest."""
    network, rng = tiny.decoder(**options), np.random.default_rng(0)
    tiny.with_lora(network)
    texts = [tiny.random_tokens(rng, length + 9) for length in LENGTHS]
    texts[3][:6] = texts[1][:6]  # what two prompts share is read once
    expected = [full_logits(network, text) for text in texts]
    cache, places = tiny.cache(network, len(texts), max(map(len, texts)))
    prefill = Prefill(cache, places, [text[:length] for text, length in zip(texts, LENGTHS)])
    hidden = network.hidden(prefill.tokens, prefill.positions, prefill)
    for row, logits in enumerate(network.head.logits(hidden[prefill.last])):
        torch.testing.assert_close(logits, expected[row][LENGTHS[row] - 1], rtol=1e-10, atol=1e-10)
    prefill.advance()
    rows, decode = list(range(len(texts))), Decode(cache, places)
    for new in range(9):
        if new in (3, 6):  # the last row takes the place of the one that leaves
            row = rows.index(1 if new == 3 else 0)
            rows[row], places[row] = rows[-1], places[-1]
            rows.pop()
            places.pop()
            decode = Decode(cache, places)
        tokens = decode.padded([texts[row][LENGTHS[row] + new] for row in rows])
        assert decode.positions.tolist()[: len(rows)] == [LENGTHS[row] + new for row in rows]
        logits = network.head.logits(network.hidden(tokens, decode.positions, decode))
        for row, found in zip(rows, logits):
            torch.testing.assert_close(found, expected[row][LENGTHS[row] + new], rtol=1e-10, atol=1e-10)
        decode.advance()
