"""GPTQ's storage against a definition of its own: bit by bit, number by number, byte by byte."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorikeet import kernels
from lorikeet.base.errors import CheckpointError
from lorikeet.kernels import dequantise_gptq as kernel
from lorikeet.kernels import few_rows
from lorikeet.ops.lora_linear import LowRank, lora_linear, reference_lora_linear
from lorikeet.quant import _gptq_layout as layout
from lorikeet.quant.gptq import Gptq

CPU = torch.device("cpu")


def _file(codes: Tensor, zeros: Tensor, scales: Tensor, g_idx: Tensor, bits: int, v1: bool) -> dict[str, Tensor]:
    """A file's tensors from codes [out, in], zeros and scales [out, groups]: Python integers, one bit after another."""

    def words(numbers: list[int]) -> list[int]:
        stream = sum(number << bits * i for i, number in enumerate(numbers))
        found = [stream >> 32 * i & 0xFFFFFFFF for i in range(len(numbers) * bits // 32)]
        return [word - (1 << 32) if word >> 31 else word for word in found]

    kept = [_less_one(column, bits) if v1 else column for column in zeros.T.tolist()]
    return {
        "qweight": torch.tensor([words(row) for row in codes.tolist()], dtype=torch.int32).T.contiguous(),
        "qzeros": torch.tensor([words(row) for row in kept], dtype=torch.int32),
        "scales": scales.T.contiguous(),
        "g_idx": g_idx.int(),
    }


def _less_one(zeros: list[int], bits: int) -> list[int]:
    """v1's zero points, as gptqmodel makes them: whole words are subtracted, so a 0 borrows of the next in its word."""
    if bits == 3:
        return [(zero - 1) % 8 for zero in zeros]
    per, found = 32 // bits, []
    for start in range(0, len(zeros), per):
        word = sum((zero - 1) << bits * i for i, zero in enumerate(zeros[start : start + per])) % (1 << 32)
        found += [word >> bits * i & (1 << bits) - 1 for i in range(per)]
    return found


def _dequantised(codes: Tensor, zeros: Tensor, scales: Tensor, g_idx: Tensor) -> Tensor:
    """The format's definition, in float64."""
    group = g_idx.long()
    return (codes.double() - zeros.double()[:, group]) * scales.double()[:, group]


def _random(
    rows: int, width: int, group_size: int, bits: int, *, seed: int, act_order: bool, sym: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    groups, top = math.ceil(width / group_size), 1 << bits
    codes = torch.randint(0, top, (rows, width), generator=generator)
    zeros = torch.randint(0, top, (rows, groups), generator=generator)
    zeros = torch.full_like(zeros, top // 2) if sym else zeros
    scales = (torch.rand(rows, groups, generator=generator) * 0.1 + 1e-3).half()
    g_idx = torch.arange(width) // group_size
    if act_order:
        g_idx = g_idx[torch.randperm(width, generator=generator)]
    return codes, zeros, scales, g_idx


SHAPES = st.sampled_from([(32, 32), (64, 96), (32, 160), (96, 64)])


@settings(max_examples=60, deadline=None)
@given(
    shape=SHAPES,
    bits=st.sampled_from(layout.BITS),
    group_size=st.sampled_from([-1, 1, 7, 16, 32, 64, 1000]),
    act_order=st.booleans(),
    sym=st.booleans(),
    v1=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_stored_tensors_are_taken_over_and_given_back_bit_by_bit(shape, bits, group_size, act_order, sym, v1, seed):
    rows, width = shape
    effective = width if group_size == -1 else min(group_size, width)
    numbers = _random(rows, width, effective, bits, seed=seed, act_order=act_order, sym=sym)
    parts = _file(*numbers, bits, v1)
    quant = Gptq(bits=bits, group_size=group_size, checkpoint_format="gptq" if v1 else "gptq_v2")
    weight = quant.empty(rows, width, torch.float32, CPU)
    weight.take(0, rows, parts)
    assert torch.equal(weight.dense(torch.float64), _dequantised(*numbers))
    given_back = weight.give(0, rows)
    assert given_back is not None and given_back.keys() == parts.keys()
    for name, tensor in parts.items():
        assert torch.equal(given_back[name], tensor), name


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from(layout.BITS),
    width=st.integers(1, 70),
    rows=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_packing_any_width_comes_back(bits, width, rows, seed):
    codes = torch.randint(0, 1 << bits, (rows, width), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = layout.pack(codes, bits)
    assert packed.shape == (rows, layout.packed_width(width, bits))
    assert torch.equal(layout.unpack(packed, bits, width), codes)


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_equals_the_definition_bit_by_bit(bits, act_order, dtype):
    if kernels.build.build() is None:
        pytest.skip("no compiler")
    shapes = (
        (5, 100, 32),
        (3, 7, 2),
        (33, 576, 128),
        (2, 40, 40),
        (4, 99, 33),
        (3, 131, 66),
        (2, 75, 75),
        (2, 530, 8),
        (2, 700, 2),
    )  # 67 and 350 groups
    for rows, width, group_size in shapes:
        codes, zeros, scales, g_idx = _random(rows, width, group_size, bits, seed=3, act_order=act_order, sym=False)
        kept = layout.pack(codes.to(torch.uint8), bits), zeros.to(torch.uint8), scales
        order = g_idx.int() if act_order else None
        ours, definition = torch.empty(rows, width, dtype=dtype), torch.empty(rows, width, dtype=dtype)
        kernel.dequantise(*kept, order, ours, bits=bits, group_size=group_size)
        layout.dequantise(*kept, order, definition, bits=bits, group_size=group_size)
        assert torch.equal(ours, definition)
        assert torch.equal(definition, _dequantised(codes, zeros, scales, g_idx).to(dtype))


def test_members_of_a_group_keep_g_idx_of_their_own():
    """q, k and v in one storage: two of them reordered, each in its own way."""
    quant, width = Gptq(bits=4, group_size=32), 96
    weight = quant.empty(32 + 64 + 32, width, torch.float32, CPU)
    wanted, files, start = [], [], 0
    for seed, (rows, act_order) in enumerate(((32, True), (64, False), (32, True))):
        numbers = _random(rows, width, 32, 4, seed=seed, act_order=act_order, sym=True)
        files.append((start, start + rows, _file(*numbers, 4, True)))
        wanted.append(_dequantised(*numbers))
        start += rows
    for at, stop, parts in reversed(files):  # in any order
        weight.take(at, stop, parts)
    dense = torch.cat(wanted)
    assert torch.equal(weight.dense(torch.float64), dense)
    assert torch.equal(weight.rows(20, 110, torch.float64), dense[20:110])  # across their borders
    for at, stop, parts in files:
        given_back = weight.give(at, stop)
        assert given_back is not None and all(torch.equal(given_back[name], parts[name]) for name in parts)
    weight.write(0, torch.zeros(32, width))  # and a rounded one has its inputs in order again
    assert torch.equal(weight.rows(0, 32, torch.float64), torch.zeros(32, width, dtype=torch.float64))
    assert torch.equal(weight.rows(96, 128, torch.float64), dense[96:])


def test_members_in_one_order_are_one_product_of_few_rows():
    """q, k and v of an act-order model see the same inputs, so they agree about their order."""
    quant, width, rows = Gptq(bits=4, group_size=32), 96, (32, 64, 32)
    in_order, other, same = (
        _random(32, width, 32, 4, seed=seed, act_order=order, sym=True)[3]
        for seed, order in ((0, False), (1, True), (2, True))
    )
    for orders, one in (
        ((same, same, same), True),
        ((same, same, other), False),
        ((in_order, same, same), False),
        ((same, in_order, same), False),
        ((in_order, in_order, in_order), True),
    ):
        weight, start = quant.empty(sum(rows), width, torch.bfloat16, CPU), 0
        for count, g_idx in zip(rows, orders):
            codes, zeros, scales, _ = _random(count, width, 32, 4, seed=start, act_order=False, sym=False)
            weight.take(start, start + count, _file(codes, zeros, scales, g_idx, 4, True))
            start += count
        assert weight.has_few_rows() is one
        if one and kernels.build.build() is not None:
            x = torch.randn(3, width, generator=torch.Generator().manual_seed(5)).bfloat16()
            expected = few_rows.forward(x, weight.dense(torch.bfloat16))
            assert torch.equal(weight.few_rows(x, None, None), expected)
        weight.write(0, torch.ones(32, width))  # and a rounded one has its inputs in order again
        assert weight.has_few_rows() is (orders[1] is orders[2] is in_order)


@pytest.mark.parametrize("bits", layout.BITS)
@pytest.mark.parametrize("sym", [True, False])
def test_rounding_is_to_the_nearest_point_of_the_grid(bits, sym):
    dense = torch.randn(6, 50, generator=torch.Generator().manual_seed(bits))
    dense[2, :16] = 0  # a group of zeros
    weight = Gptq(bits=bits, group_size=16, sym=sym).freeze(dense)
    found, scales = weight.dense(torch.float32), weight.scales.float()
    step = scales.repeat_interleave(16, dim=1)[:, :50]
    # half a step, but for the largest of a symmetric grid, which has one point less above the middle
    assert ((found - dense).abs() <= step * (1.001 if sym else 0.502) + 1e-6).all()
    assert torch.equal(found[2, :16], torch.zeros(16))
    assert (found - dense).abs().mean() < 0.3 * step.mean()


def test_bytes_are_those_of_the_format():
    """4 bits a weight, and for each 128 of them a float16 scale and a zero point, which is a byte here."""
    weight = Gptq(bits=4, group_size=128).empty(256, 576, torch.bfloat16, CPU)
    groups = 5  # the last one partial
    total = sum(tensor.numel() * tensor.element_size() for tensor in weight.parameters())
    assert total == 256 * 576 // 2 + 256 * groups * (2 + 1)
    assert [len(tensor) for tensor in weight.parameters()] == [256] * 3  # rows on dim 0: it shards
    assert not any(tensor.requires_grad for tensor in weight.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_backward_are_those_of_the_dequantised_matrix(dtype):
    generator = torch.Generator().manual_seed(0)
    weight = Gptq(bits=4, group_size=32).freeze(torch.randn(64, 96, generator=generator))
    members = (LowRank(slice(0, 32), 2.0), LowRank(slice(32, 64), 0.5))
    draws = [torch.randn(*size, generator=generator) for size in ((40, 96), (4, 96), (32, 4), (8, 96), (32, 8))]
    results = []
    for exact in (False, True):
        kind = torch.float32 if exact else dtype
        x, *factors = (draw.clone().to(kind if i == 0 else torch.float32) for i, draw in enumerate(draws))
        for tensor in (x, *factors):
            tensor.requires_grad_()
        if exact:
            y = reference_lora_linear(x, weight.dense(torch.float32), None, members, factors)
        else:
            y = lora_linear(x, weight, None, members, factors)
        y.float().square().mean().backward()
        results.append([y, *(tensor.grad for tensor in (x, *factors))])
    for ours, wanted in zip(*results):
        error = (ours.float() - wanted).norm() / wanted.norm()
        assert error < (1e-5 if dtype == torch.float32 else 0.02)


def _parts() -> dict[str, Tensor]:
    return _file(*_random(32, 64, 32, 4, seed=0, act_order=False, sym=True), 4, True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"qweight": torch.zeros(16, 32, dtype=torch.int32)}, "qweight"),  # 8 bits a weight
        ({"scales": torch.ones(4, 32).half()}, "scales"),  # of groups of 16
        ({"qzeros": torch.zeros(2, 8, dtype=torch.int32)}, "qzeros"),
        ({"g_idx": torch.full((64,), 2, dtype=torch.int32)}, "group that is not there"),
        ({"g_idx": torch.full((64,), -1, dtype=torch.int32)}, "group that is not there"),
        ({"g_idx": torch.zeros(32, dtype=torch.int32)}, "g_idx"),
        ({"scales": torch.full((2, 32), 1e6)}, "float16"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, said):
    weight = Gptq(bits=4, group_size=32).empty(32, 64, torch.float32, CPU)
    with pytest.raises(CheckpointError, match=said):
        weight.take(0, 32, _parts() | change)


def test_g_idx_may_be_missing():
    parts = _parts()
    weights = [Gptq(bits=4, group_size=32).empty(32, 64, torch.float32, CPU) for _ in range(2)]
    weights[0].take(0, 32, parts)
    del parts["g_idx"]
    weights[1].take(0, 32, parts)
    assert torch.equal(weights[0].dense(torch.float32), weights[1].dense(torch.float32))


def _from_an_older_gptqmodel(zeros: Tensor) -> Tensor:
    """qzeros [groups, out * 3 / 32] as gptqmodel 4 wrote them in v1: three constants off three words, which are not
    the words' ones for 3 bits."""
    taken = ("00100100100100100100100100100100", "10010010010010010010010010010010", "01001001001001001001001001001001")
    words = _file(zeros.T, zeros.T, torch.ones(zeros.T.shape), torch.zeros(1), 3, False)["qzeros"].long()
    found = [(int(word) - int(taken[i % 3], 2)) % (1 << 32) for row in words for i, word in enumerate(row)]
    return torch.tensor([word - (word >> 31 << 32) for word in found], dtype=torch.int32).view(words.shape)


def test_symmetric_three_bits_of_an_older_gptqmodel():
    numbers = _random(64, 96, 32, 3, seed=0, act_order=False, sym=True)
    parts = _file(*numbers, 3, True)
    older = parts | {"qzeros": _from_an_older_gptqmodel(numbers[1].T)}
    assert not torch.equal(older["qzeros"], parts["qzeros"])
    for form in (parts, older):
        weight = Gptq(bits=3, group_size=32).empty(64, 96, torch.float32, CPU)
        weight.take(0, 64, form)
        assert torch.equal(weight.dense(torch.float64), _dequantised(*numbers))


@pytest.mark.parametrize("rows, width", [(48, 64), (64, 48)])
def test_sizes_that_the_format_has_no_place_for_are_refused(rows, width):
    parts = {name: torch.zeros(1, 1, dtype=torch.int32) for name in layout.PARTS}
    with pytest.raises(CheckpointError, match="no place for a weight"):
        Gptq(bits=3, group_size=16).empty(rows, width, torch.float32, CPU).take(0, rows, parts)


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"desc_act": True}, True),
        ({"desc_act": False}, False),
        ({"desc_act": True, "static_groups": True}, False),
        ({"desc_act": True, "meta": {"static_groups": True}}, False),  # where gptqmodel says it
        ({"desc_act": True, "group_size": -1}, False),
    ],
)
def test_g_idx_is_needed_where_groups_follow_another_order(settings, needed):
    quant = Gptq.stored_as({"quant_method": "gptq", "bits": 4, "group_size": 32} | settings, "a folder")
    assert quant is not None
    parts = _file(*_random(32, 64, 64 if quant.group_size == -1 else 32, 4, seed=0, act_order=False, sym=True), 4, True)
    del parts["g_idx"]
    weight = quant.empty(32, 64, torch.float32, CPU)
    if not needed:
        weight.take(0, 32, parts)
        return
    with pytest.raises(CheckpointError, match="desc_act"):
        weight.take(0, 32, parts)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bits": 5}, "bits"),
        ({"bits": 4, "group_size": 0}, "group_size"),
        ({"bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format"),
        ({"group_size": 128}, "one number of bits"),
        ({"bits": 4, "dynamic": {"+:.*down.*": {"bits": 8}}}, "one number of bits"),
    ],
)
def test_settings_that_the_format_lacks_are_refused(settings, said):
    with pytest.raises(CheckpointError, match=said):
        Gptq.stored_as({"quant_method": "gptq"} | settings, "a folder")


def test_settings_of_a_checkpoint():
    read = Gptq.stored_as({"quant_method": "gptq", "bits": 3, "group_size": 64, "sym": False, "desc_act": True}, "it")
    assert read is not None and read.model_dump() == Gptq(bits=3, group_size=64, sym=False).model_dump()
    newer = Gptq.stored_as({"quant_method": "gptq", "bits": 8, "checkpoint_format": "gptq_v2"}, "it")
    assert newer is not None and (newer.bits, newer.checkpoint_format) == (8, "gptq_v2")
    assert Gptq.stored_as({"quant_method": "awq", "bits": 4}, "it") is None
