"""The compiled attention on pages against plain PyTorch's, and a text's numbers in any company."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from lorikeet import kernels
from lorikeet.kernels import build, paged_attention
from lorikeet.models.cache_views import Decode
from lorikeet.models.kv_cache import PAGE, Kv, KvCache, Place
from parity import tiny

pytestmark = pytest.mark.skipif(build.build() is None, reason="no C++ compiler here")
LENGTHS = [0, 31, 32, 300, 1000]
CASES = [
    pytest.param(torch.float32, "auto", 2e-6, id="float32"),
    pytest.param(torch.bfloat16, "auto", 1e-2, id="bfloat16"),
    pytest.param(torch.float32, "int8", 2e-6, id="float32 in 8 bits"),
    pytest.param(torch.bfloat16, "int8", 1.5e-2, id="bfloat16 in 8 bits"),
]


@pytest.fixture(autouse=True)
def _compiled_again() -> Iterator[None]:
    yield
    kernels.choose("auto")


def made(
    dtype: torch.dtype, kv: Kv, heads: int, kv_heads: int, width: int
) -> tuple[KvCache, list[Place], list[Tensor]]:
    """A cache full of numbers, texts whose pages lie anywhere in it, and q, k, v of their new tokens as slices."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    count = sum(length // PAGE + 1 for length in LENGTHS)
    shape = tiny.decoder(heads=heads, kv_heads=kv_heads, head_dim=width, layers=1).shape
    cache = KvCache(shape, 1 + count, dtype, tiny.CPU, kv)
    pages = (1 + rng.permutation(count)).tolist()
    places = [Place([pages.pop() for _ in range(length // PAGE + 1)], length) for length in LENGTHS]
    every, within = torch.arange(1 + count).repeat_interleave(PAGE), torch.arange(PAGE).repeat(1 + count)
    old = [torch.randn(len(every), kv_heads, width, generator=generator).to(dtype) for _ in range(2)]
    cache.write(0, every, within, *old)
    both = torch.randn(len(LENGTHS), heads + 2 * kv_heads, width, generator=generator).to(dtype)
    return cache, places, list(both.split([heads, kv_heads, kv_heads], dim=1))


def attended(cache: KvCache, places: list[Place], new: list[Tensor], **options: float) -> Tensor:
    decode = Decode(cache, places)
    padded = [torch.cat([x, x.new_zeros(decode.rows - len(x), *x.shape[1:])]) for x in new]
    return decode.attend(0, *padded, **({"scale": 0.2} | options))[: decode.live]  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(3, 1, 64), (4, 4, 16), (8, 1, 128), (6, 2, 80)])
@pytest.mark.parametrize(("dtype", "kv", "tolerance"), CASES)
@pytest.mark.parametrize("options", [{}, {"window": 40}, {"softcap": 5.0}], ids=["plain", "window", "softcap"])
def test_it_equals_plain_attention(
    dtype: torch.dtype, kv: Kv, tolerance: float, sizes: tuple[int, int, int], options: dict[str, float]
) -> None:
    cache, places, new = made(dtype, kv, *sizes)
    assert paged_attention.takes(*new, cache.keys)
    found = attended(cache, places, new, **options)
    ours = [cache.texts(0, torch.tensor([place.pages]))[0] for place in places]
    kernels.choose("eager")
    again, places, new = made(dtype, kv, *sizes)
    expected = attended(again, places, new, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    for one, place in zip(ours, places):  # and the new keys are kept alike
        kept = again.texts(0, torch.tensor([place.pages]))[0]
        torch.testing.assert_close(one, kept, rtol=0, atol=0 if kv == "auto" else 0.03)


@pytest.mark.parametrize("kv", ["auto", "int8"])
def test_a_text_s_numbers_do_not_depend_on_its_company(kv: Kv) -> None:
    cache, places, new = made(torch.float32, kv, 3, 1, 64)
    together = attended(cache, places, new)
    for i, place in enumerate(places):
        assert torch.equal(attended(cache, [place], [x[i : i + 1] for x in new])[0], together[i])


@pytest.mark.parametrize(("dtype", "kv", "tolerance"), CASES)
def test_tokens_are_written_as_pytorch_writes_them(dtype: torch.dtype, kv: Kv, tolerance: float) -> None:
    shape = tiny.decoder(heads=4, kv_heads=2, head_dim=24, layers=2).shape
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(100, 8, 24, generator=generator).to(dtype)[:, 4:].split(2, dim=1)
    pages = torch.tensor([3, 1, 5, 2]).repeat_interleave(25)  # some of each page's tokens
    within = torch.arange(25).repeat(4)
    found = []
    for how in ("auto", "eager"):
        kernels.choose(how)  # type: ignore[arg-type]
        assert paged_attention.keeps(k, v, KvCache(shape, 1, dtype, tiny.CPU, kv).keys) == (how == "auto")
        cache = KvCache(shape, 6, dtype, tiny.CPU, kv)
        cache.write(1, pages, within, k, v)
        found.append(cache)
    fast, plain = found
    names = ("keys", "values", "key_scales", "value_scales") if kv == "int8" else ("keys", "values")
    for name in names:  # a quotient may round to either side of a half
        one, other = getattr(fast, name), getattr(plain, name)
        torch.testing.assert_close(one, other, rtol=0, atol=1 if one.dtype == torch.int8 else 0)
        assert int((one != other).sum()) <= 2


def test_other_sizes_and_kinds_are_left_to_pytorch() -> None:
    cache, _, (q, k, v) = made(torch.float32, "auto", 4, 2, 24)
    assert not paged_attention.takes(q, k, v, cache.keys)
    cache, _, new = made(torch.float64, "auto", 4, 2, 16)
    assert not paged_attention.takes(*new, cache.keys)
