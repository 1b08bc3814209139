"""Attention over packed rows against the rule it is defined by, in float64, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from lorikeet import kernels
from lorikeet.base.nouns import Batch, Example
from lorikeet.data.pack import pack_row, plan_rows
from lorikeet.kernels import build
from lorikeet.kernels.counting import counting
from lorikeet.ops import bucketed_attention as bucketed
from lorikeet.ops.attention import PackedView, reference_attention, visible
from lorikeet.ops.bucketed_attention import plan_buckets
from parity.tiny import example
from parity.trees import conversations

E = 4


def row_of(examples: list[Example]) -> Batch:
    (ordered,) = plan_rows(examples, row_tokens=1 << 20)
    return pack_row(ordered)


def qkv(size: int, heads: int, kv_heads: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(size, count, E, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for count in (heads, kv_heads, kv_heads)
    ]


def compare(row: Batch, heads: int, kv_heads: int, **options: object) -> None:
    """Values and the gradients of q, k and v."""
    inputs = qkv(len(row.tokens), heads, kv_heads)
    fast = PackedView(row.visible_until, row.positions).attend(0, *inputs, scale=0.7, **options)
    slow = reference_attention(*inputs, row.visible_until, row.positions, scale=0.7, **options)
    torch.testing.assert_close(fast, slow)
    probe = torch.randn(fast.shape, generator=torch.Generator().manual_seed(1), dtype=fast.dtype)
    gradients = [torch.autograd.grad((out * probe).sum(), inputs) for out in (fast, slow)]
    for left, right in zip(*gradients):
        torch.testing.assert_close(left, right)


def forest(seed: int = 0, sizes: tuple[int, ...] = (9, 30, 3, 17, 2, 30)) -> Batch:
    """Conversations alone, and some that share prefixes of 8 and 12."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, 50, size).tolist() for size in sizes]
    texts += [texts[1][:12] + rng.integers(0, 50, 5).tolist(), texts[1][:8] + rng.integers(0, 50, 20).tolist()]
    return row_of([example(text) for text in texts])


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 1, 6, 1000])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_bucketed_equals_its_reference(heads: int, kv_heads: int, window: int | None, softcap: float | None) -> None:
    compare(forest(), heads, kv_heads, window=window, softcap=softcap)


@given(conversations(most=8), st.sampled_from([None, 2, 5]), st.sampled_from([3, 64]))
@settings(max_examples=40, deadline=None)
def test_any_forest_equals_its_reference(examples: list[Example], window: int | None, block: int) -> None:
    """Also with runs cut after three queries."""
    before, bucketed.QUERY_BLOCK = bucketed.QUERY_BLOCK, block
    try:
        compare(row_of(examples), 2, 1, window=window)
    finally:
        bucketed.QUERY_BLOCK = before


def test_a_conversation_longer_than_a_query_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucketed, "QUERY_BLOCK", 16)
    monkeypatch.setattr(bucketed, "ROUND", 1)
    row = forest(sizes=(70, 16, 17, 33))
    assert max(bucket.queries.shape[1] for bucket in buckets(row)) == 16
    compare(row, 4, 2)
    compare(row, 4, 2, window=20)


def buckets(row: Batch) -> list[bucketed.Bucket]:
    return plan_buckets(row.visible_until, row.positions, None, torch.device("cpu")).buckets


def test_pieces_of_unlike_size_are_padded_together_and_padding_changes_nothing() -> None:
    row = row_of([example([i] + list(range(i % 5 + 3))) for i in range(8)])
    (bucket,) = buckets(row)
    assert len(bucket.queries) == 8 and (bucket.queries < 0).any() and (bucket.keys < 0).any() and bucket.hidden.any()
    compare(row, 4, 2)


def test_bucket_sizes_repeat_from_row_to_row() -> None:
    """A matmul of a new shape costs a new kernel, which stays in memory."""
    for sizes in ((70, 16, 17, 33), (71, 15, 19, 30), (66, 18, 31, 32)):
        for bucket in buckets(forest(sizes=sizes)):
            queries, keys = bucket.queries.shape[1], bucket.keys.shape[1]
            assert queries % bucketed.ROUND == 0 and keys % bucketed.ROUND == 0


def test_buckets_stay_within_the_bound_of_the_largest_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucketed, "BUCKET_SCORES", 200)
    monkeypatch.setattr(bucketed, "ROUND", 1)
    row = row_of([example([i, 1, 2, 3, 4, 5, 6, 7, 8, 9]) for i in range(9)])
    found = buckets(row)
    assert len(found) == 5 and all(one.queries.size * 10 <= 200 for one in found)
    compare(row, 2, 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_flex_attention_equals_its_reference(window: int | None, softcap: float | None) -> None:
    """What CUDA runs compiled, here in torch's eager form."""
    row = forest()
    inputs = [tensor.detach() for tensor in qkv(len(row.tokens), 4, 2, torch.float32)]
    view = PackedView(row.visible_until, row.positions)
    found = view.flex(*inputs, scale=0.7, window=window, softcap=softcap, kernel=flex_attention)
    options = {"scale": 0.7, "window": window, "softcap": softcap}
    expected = reference_attention(*inputs, row.visible_until, row.positions, **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_cuda_attention_equals_its_reference(window: int | None, softcap: float | None) -> None:
    options = {"scale": 0.7, "window": window, "softcap": softcap}
    for row in (forest(), forest(sizes=(70, 300, 3))):  # the second length must not need another kernel
        inputs = [tensor.detach().cuda().requires_grad_() for tensor in qkv(len(row.tokens), 4, 2, torch.float32)]
        found = PackedView(row.visible_until, row.positions).attend(0, *inputs, **options)
        expected = reference_attention(*inputs, row.visible_until.cuda(), row.positions.cuda(), **options)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        gradients = [torch.autograd.grad(out.square().sum(), inputs) for out in (found, expected)]
        for left, right in zip(*gradients):
            torch.testing.assert_close(left, right, rtol=1e-2, atol=1e-2)


def test_one_conversation_is_plain_causal_attention() -> None:
    row = row_of([example(range(9))])
    q, k, v = (tensor.detach() for tensor in qkv(9, 2, 2))
    found = PackedView(row.visible_until, row.positions).attend(0, q, k, v, scale=0.5)
    heads_first = [tensor.transpose(0, 1) for tensor in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True, scale=0.5)
    torch.testing.assert_close(found, expected.transpose(0, 1))


def test_the_rule_of_the_architecture_page() -> None:
    """p p p a a | p p p b b b"""
    until, positions = torch.tensor([8, 8, 8, 5, 5, 8, 8, 8]), torch.tensor([0, 1, 2, 3, 4, 3, 4, 5])
    seen = visible(until, positions)
    assert seen[4].tolist() == [True] * 5 + [False] * 3
    assert seen[6].tolist() == [True] * 3 + [False] * 2 + [True] * 2 + [False]
    # in a window of 2 b[0], at position 3, sees the prefix's last token at position 2, though it stands three further
    assert visible(until, positions, 2)[5].tolist() == [False, False, True, False, False, True, False, False]


def test_bfloat16_stays_near_float64() -> None:
    row = forest()
    inputs = qkv(len(row.tokens), 4, 2, torch.bfloat16)
    found = PackedView(row.visible_until, row.positions).attend(0, *inputs, scale=0.7)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = reference_attention(*wide, row.visible_until, row.positions, scale=0.7)
    torch.testing.assert_close(found.double(), expected, rtol=0.05, atol=0.05)
    gradients = [torch.autograd.grad(out.sum(), tensors) for out, tensors in ((found, inputs), (expected, wide))]
    for left, right in zip(*gradients):
        assert left.dtype == torch.bfloat16
        torch.testing.assert_close(left.double(), right, rtol=0.1, atol=0.1)


def lengths_row(*lengths: int) -> Batch:
    rng = np.random.default_rng(0)
    return row_of([example([i, *rng.integers(0, 50, size - 1).tolist()]) for i, size in enumerate(lengths)])


def one_buffer(size: int, heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k and v as slices of one buffer, as a fused projection gives them."""
    generator = torch.Generator().manual_seed(size)
    whole = torch.randn(size, heads + 2 * kv_heads, width, generator=generator).mul_(1.5).to(dtype)
    return [part.requires_grad_() for part in whole.split([heads, kv_heads, kv_heads], 1)]


def run(row: Batch, inputs: list[Tensor], monkeypatch: pytest.MonkeyPatch, way: str, **options: object) -> list[Tensor]:
    """The output and the gradients, computed compiled, eager or by definition (in float64)."""
    dtype = inputs[0].dtype
    monkeypatch.setattr(kernels, "_chosen", ["eager" if way == "eager" else "auto"])
    view = PackedView(row.visible_until, row.positions)
    if way == "definition":
        inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
        out = reference_attention(*inputs, row.visible_until, row.positions, **options)
    else:
        out = view.attend(0, *inputs, **options)
    assert bool(view._plans) == (way == "compiled") and bool(view._buckets) == (way == "eager")
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * probe).sum(), inputs)]


WAYS = [
    pytest.param("compiled", marks=pytest.mark.skipif(build.build() is None, reason="needs a C++ compiler")),
    "eager",
]
ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the largest value


def near(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype, way: str = "compiled") -> None:
    """Plain PyTorch rounds probabilities and their gradients to bfloat16 at every step; the kernel does at two."""
    error = ERROR[dtype] * (3 if way == "eager" else 1)
    for left, right in zip(found, expected):
        assert left.dtype == dtype
        assert (left.double() - right).abs().max() <= error * right.abs().max().clamp(min=1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(1, 1, 32), (3, 1, 64), (9, 3, 64), (4, 1, 256), (2, 2, 96), (4, 2, 128)]
)
@pytest.mark.parametrize("options", [{}, {"window": 37}, {"softcap": 2.0, "window": 100}], ids=str)
def test_values_and_gradients(way, dtype, heads, kv_heads, width, options, monkeypatch) -> None:
    for row in (lengths_row(1, 7, 64, 33, 210), forest(sizes=(9, 80, 3, 17, 70, 130))):
        inputs = one_buffer(len(row.tokens), heads, kv_heads, width, dtype)
        found, expected = (
            run(row, inputs, monkeypatch, one, scale=width**-0.5, **options) for one in (way, "definition")
        )
        near(found, expected, dtype, way)


@pytest.mark.parametrize("way", WAYS)
@given(conversations(most=8), st.sampled_from([None, 2, 5]), st.sampled_from(list(ERROR)))
@settings(max_examples=25, deadline=None)
def test_any_forest(way: str, examples: list[Example], window: int | None, dtype: torch.dtype) -> None:
    row = row_of(examples)
    inputs = one_buffer(len(row.tokens), 4, 2, 32, dtype)
    with pytest.MonkeyPatch.context() as patch:
        near(*(run(row, inputs, patch, one, scale=0.2, window=window) for one in (way, "definition")), dtype, way)


@pytest.mark.skipif(build.build() is None, reason="needs a C++ compiler")
@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), st.sampled_from([None, 50]))
@settings(max_examples=15, deadline=None)
def test_any_lengths(lengths: list[int], window: int | None) -> None:
    row = lengths_row(*lengths)
    inputs = one_buffer(len(row.tokens), 2, 1, 32, torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        found, expected = (run(row, inputs, patch, way, scale=0.2, window=window) for way in ("compiled", "definition"))
    near(found, expected, torch.float32)


@pytest.mark.skipif(build.build() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("lengths", [(1500,), (700, 1, 65)])
def test_long_texts_and_bitwise_the_same_on_any_number_of_threads(dtype, lengths, monkeypatch) -> None:
    """A long text is cut, and its parts' sums are added in an order that follows from the row."""
    row = lengths_row(*lengths)
    inputs = one_buffer(len(row.tokens), 3, 1, 64, dtype)
    runs, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            runs.append(run(row, inputs, monkeypatch, "compiled", scale=0.125))
    finally:
        torch.set_num_threads(before)
    near(runs[0], run(row, inputs, monkeypatch, "definition", scale=0.125), dtype)
    assert all(torch.equal(first, other) for again in runs[1:] for first, other in zip(runs[0], again))


@pytest.mark.skipif(build.build() is None, reason="needs a C++ compiler")
def test_texts_of_a_row_do_not_touch_each_other(monkeypatch) -> None:
    """Not even where one of them holds values that are not numbers."""
    row = lengths_row(70, 20, 45)
    inputs = one_buffer(len(row.tokens), 2, 1, 32, torch.float32)
    whole = run(row, inputs, monkeypatch, "compiled", scale=0.2)
    ends = [int(end) for end in row.visible_until.unique()]
    with torch.no_grad():
        for tensor in inputs:
            tensor[ends[0] : ends[1]] = float("nan")
    broken = run(row, inputs, monkeypatch, "compiled", scale=0.2)
    for left, right in zip(whole, broken):
        assert torch.equal(left[: ends[0]], right[: ends[0]]) and torch.equal(left[ends[1] :], right[ends[1] :])
        assert right[ends[0] : ends[1]].isnan().all()


@pytest.mark.skipif(build.build() is None, reason="needs a C++ compiler")
def test_tensors_without_numbers_get_the_same_outputs_and_counts(monkeypatch) -> None:
    row = lengths_row(70, 20)
    inputs = one_buffer(len(row.tokens), 2, 1, 32, torch.bfloat16)
    meta = [tensor.detach().to("meta").requires_grad_() for tensor in inputs]
    heard: list[list[tuple[str, float]]] = [[], []]
    for tensors, said in zip((inputs, meta), heard):
        with counting(lambda *one, said=said: said.append(one)):
            out = PackedView(row.visible_until, row.positions).attend(0, *tensors, scale=0.2)
            grads = torch.autograd.grad(out, tensors, torch.ones_like(out))
        assert [tuple(grad.shape) for grad in grads] == [tuple(tensor.shape) for tensor in tensors]
    area = 64 * 64 + 32 * 96 + 32 * 32  # two blocks of the first text, one of the second
    assert heard[0] == heard[1] == [("attention", 4 * area * 2 * 32), ("attention", 10 * area * 2 * 32)]
