"""A prefix in every view: equal to its definition, to nothing where it is empty, and to tokens where it is theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lorikeet.data.pack import pack_row
from lorikeet.models.cache_views import Decode, Prefill
from lorikeet.ops.attention import PackedView, Prefix
from lorikeet.ops.prefix import PrefixedView, RecordedView, reference_prefix_attention
from parity import tiny

CASES = [
    {"heads": 4, "kv_heads": 2},
    {"heads": 2, "kv_heads": 1, "window": 6},
    {"heads": 2, "kv_heads": 2, "softcap": 3.0},
    {"heads": 4, "kv_heads": 1, "softcap": 2.0, "window": 4},
]


def row() -> tuple[Tensor, Tensor]:
    """visible_until and positions of conversations that share some of their beginnings."""
    rng = np.random.default_rng(0)
    first, second = tiny.random_tokens(rng, 9), tiny.random_tokens(rng, 40)
    batch = pack_row([tiny.example(tokens) for tokens in sorted([first, first + second[:7], first + [1], second])])
    return batch.visible_until, batch.positions


def tensors(size: int, prefix: int, heads: int, kv_heads: int, dtype: torch.dtype, width: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(size + prefix)
    shapes = [(size, heads, width), (size, kv_heads, width), (size, kv_heads, width)]
    shapes += [(prefix, kv_heads, width)] * 2
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("size", [0, 1, 5, 40])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-11), (torch.float32, 2e-5), (torch.bfloat16, 0.06)])
def test_a_prefix_equals_plain_concatenation(size: int, case: dict, dtype: torch.dtype, close: float) -> None:
    """Values and all gradients: float64 is plain PyTorch, the others are compiled where they can be."""
    options = {"scale": 0.2, "window": None, "softcap": None} | case
    heads, kv_heads = options.pop("heads"), options.pop("kv_heads")
    until, positions = row()
    q, k, v, *prefix = tensors(len(until), size, heads, kv_heads, dtype)
    view = PackedView(until, positions)
    found = view.attend(0, q, k, v, prefix=(prefix[0], prefix[1]), **options)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v, *prefix)]
    expected = reference_prefix_attention(*wide[:3], (wide[3], wide[4]), until, positions, **options)
    slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = torch.autograd.grad(found, (q, k, v, *prefix), slope.to(dtype))
    for got, wanted in zip((found, *grads), (expected, *torch.autograd.grad(expected, wide, slope))):
        if wanted.numel():
            assert (got.double() - wanted).abs().max() <= close * max(1.0, wanted.abs().max().item())
    if not size:
        assert torch.equal(found, view.attend(0, q, k, v, **options))


def some_prefix(network: tiny.Decoder, size: int) -> list[Prefix]:
    """The keys and values of a text of `size` tokens."""
    tokens = torch.tensor(tiny.random_tokens(np.random.default_rng(7), size))
    recorded = RecordedView(PackedView(torch.full((size,), size, dtype=torch.int32), torch.arange(size)))
    network.hidden(tokens, torch.arange(size), recorded)
    return [recorded.kept[layer] for layer in range(network.shape.layers)]


@pytest.mark.parametrize("window", [None, 5])
@torch.no_grad()
def test_the_keys_of_a_text_continue_as_the_text_itself(window: int | None) -> None:
    network, rng = tiny.decoder(window=window), np.random.default_rng(0)
    head, tail = tiny.random_tokens(np.random.default_rng(7), 6), tiny.random_tokens(rng, 9)
    (whole,) = tiny.one_by_one(network, [tiny.example(head + tail)])
    alone = pack_row([tiny.example(tail)])
    view = PrefixedView(PackedView(alone.visible_until, alone.positions), some_prefix(network, 6))
    found = network.hidden(alone.tokens, alone.positions + 6, view)
    view.check()
    torch.testing.assert_close(found, whole[6:], rtol=1e-10, atol=1e-10)
    assert view.lengths().tolist() == [15] * 9


@pytest.mark.parametrize("options", [{}, {"window": 5}, {"heads": 3, "kv_heads": 1, "bias": True}])
@torch.no_grad()
def test_the_cache_reads_and_decodes_behind_a_prefix(options: dict) -> None:
    network, rng = tiny.decoder(**options), np.random.default_rng(0)
    prefix, lengths = some_prefix(network, 4), [3, 8, 5]
    texts = [tiny.random_tokens(rng, length + 4) for length in lengths]
    texts[1][:5] = texts[2][:5]
    expected = []
    for text in texts:
        alone = pack_row([tiny.example(text)])
        packed = PrefixedView(PackedView(alone.visible_until, alone.positions), prefix)
        expected.append(network.hidden(alone.tokens, alone.positions + 4, packed))
    cache, places = tiny.cache(network, 3, 12)
    prefill = Prefill(cache, places, [text[:length] for text, length in zip(texts, lengths)])
    hidden = network.hidden(prefill.tokens, prefill.positions + 4, PrefixedView(prefill, prefix))
    for i, length in enumerate(lengths):
        torch.testing.assert_close(hidden[prefill.last[i]], expected[i][length - 1], rtol=1e-10, atol=1e-10)
    prefill.advance()
    decode = Decode(cache, places)
    for new in range(4):
        tokens = decode.padded([text[length + new] for text, length in zip(texts, lengths)])
        found = network.hidden(tokens, decode.positions + 4, PrefixedView(decode, prefix))
        for i, length in enumerate(lengths):
            torch.testing.assert_close(found[i], expected[i][length + new], rtol=1e-10, atol=1e-10)
        decode.advance()
