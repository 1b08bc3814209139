"""nf4 and fp4: the tables of the papers, bitsandbytes' bytes, the kernel's bits, and linears as if they were dense."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorikeet import kernels
from lorikeet.base.errors import CheckpointError
from lorikeet.ops.lora_linear import lora_linear
from lorikeet.quant._four_bit import DYNAMIC_MAP, FourBit, FourBitWeight
from lorikeet.quant.fp4 import FP4
from lorikeet.quant.nf4 import NF4
from quant.made_by_bitsandbytes import MADE, tensor, weight

KINDS: list[type[FourBit]] = [NF4, FP4]


def kept(options: FourBit, dense: Tensor) -> FourBitWeight:
    made = options.freeze(dense)
    assert isinstance(made, FourBitWeight)
    return made


def plainly(dense: np.ndarray, table: np.ndarray, block: int) -> np.ndarray:
    """What a row [in] is after quantising, from the papers: each block over its largest, then the nearest number."""
    out = np.empty_like(dense)
    for start in range(0, len(dense), block):
        part = dense[start : start + block]
        most = np.abs(part).max()
        nearest = [table[np.abs(table - value / most).argmin()] if most else 0.0 for value in part.astype(float)]
        out[start : start + block] = np.array(nearest) * most
    return out


def test_nf4_s_numbers_are_quantiles_of_a_normal_distribution() -> None:
    """QLoRA, appendix E: eight positive, seven negative, zero; the outermost at 0.9677 of the distribution's mass."""
    at = NormalDist().inv_cdf
    positive = [at(0.5 + (0.9677083 - 0.5) * i / 8) for i in range(1, 9)]
    negative = [-at(0.5 + (0.9677083 - 0.5) * i / 7) for i in range(1, 8)]
    numbers = sorted([*negative, 0.0, *positive])
    assert NF4.table.tolist() == pytest.approx([number / positive[-1] for number in numbers], abs=2e-6)


def test_fp4_s_numbers_are_floats_of_four_bits() -> None:
    """A sign, two bits of exponent, one of mantissa; without a leading one where the exponent is the lowest."""
    floats = sorted([0.0, 0.0625, *(2.0**e * (1 + m / 2) for e in (1, 2, 3) for m in (0, 1))])
    assert sorted(FP4.table[:8].tolist()) == pytest.approx([value / 12 for value in floats])
    assert torch.equal(FP4.table[8:], -FP4.table[:8])


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_bitsandbytes(kind: type[FourBit], computed_by: str) -> None:
    made, found = MADE[kind().kind], kept(kind(), weight(0))
    assert torch.equal(found.codes.flatten(), tensor(made["codes"], torch.uint8))
    assert torch.equal(found.absmax.flatten(), tensor(made["absmax"], torch.float32))
    assert torch.equal(found.dense(torch.float32).flatten(), tensor(made["dense"], torch.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_doubly_quantised_bytes_are_bitsandbytes_for_one_row(kind: type[FourBit], computed_by: str) -> None:
    made, found = MADE[f"{kind().kind} doubly"], kept(kind(double_quant=True), weight(1))
    assert found.scale is not None and found.offset is not None
    assert torch.equal(found.codes.flatten(), tensor(made["codes"], torch.uint8))
    assert torch.equal(found.absmax.flatten(), tensor(made["absmax"], torch.uint8))
    assert torch.equal(found.scale.flatten(), tensor(made["scale"], torch.float32))
    assert torch.equal(found.offset.flatten(), tensor(made["offset"], torch.float32))
    assert torch.equal(found.dense(torch.float32).flatten(), tensor(made["dense"], torch.float32))


def test_the_numbers_of_scales_are_bitsandbytes() -> None:
    assert torch.equal(DYNAMIC_MAP, tensor(MADE["map"], torch.float32))


SIZES = {"rows": st.integers(1, 9), "width": st.integers(1, 200), "block": st.sampled_from([32, 64, 128])}


@settings(deadline=None, max_examples=60)
@given(**SIZES, kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
def test_any_shape_is_what_the_papers_say(rows: int, width: int, block: int, kind: type[FourBit], seed: int) -> None:
    dense = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    found = kept(kind.model_validate({"block_size": block}), dense).dense(torch.float32)
    wanted = np.stack([plainly(row, kind.table.double().numpy(), block) for row in dense.numpy()])
    # a tie in exact arithmetic may fall either way in float32: at most one such weight
    assert (np.abs(found.numpy() - wanted) > 1e-6 * np.abs(wanted).max()).sum() <= 1


@settings(deadline=None, max_examples=60)
@given(
    **SIZES,
    kind=st.sampled_from(KINDS),
    double=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    cut=st.integers(0, 8),
)
def test_rows_stand_alone_and_the_kernel_has_the_same_bits(
    rows: int, width: int, block: int, kind: type[FourBit], double: bool, dtype: torch.dtype, cut: int
) -> None:
    dense = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows * width)).to(dtype)
    options, cut = kind.model_validate({"block_size": block, "double_quant": double}), min(cut, rows)
    whole, parts = kept(options, dense), options.empty(rows, width, dtype, dense.device)
    parts.write(cut, dense[cut:])
    parts.write(0, dense[:cut])
    kernels.choose("eager")
    plain = kept(options, dense)
    numbers = plain.dense(dtype)
    kernels.choose("auto")
    for name, wanted in plain.named_parameters():
        assert torch.equal(whole.get_parameter(name), wanted) and torch.equal(parts.get_parameter(name), wanted)
    assert torch.equal(whole.dense(dtype), numbers)
    assert torch.equal(whole.rows(cut, rows, dtype), numbers[cut:])


def test_a_large_matrix_is_taken_in_parts(computed_by: str) -> None:
    """More values than plain PyTorch takes at a time."""
    dense = torch.randn(300, 4096)
    assert torch.equal(NF4().freeze(dense).dense(torch.float32)[-3:], NF4().freeze(dense[-3:]).dense(torch.float32))


@pytest.mark.parametrize(
    "width, double, bits",
    [(4096, False, 4.5), (4096, True, 4 + 8 / 64 + 64 / 4096), (576, False, 4.5), (576, True, 4 + 8 / 64 + 64 / 576)],
)
def test_bytes_add_up(width: int, double: bool, bits: float) -> None:
    found = NF4(double_quant=double).empty(10, width, torch.bfloat16, torch.device("cpu"))
    stored = [*found.parameters(), *found.buffers()]
    assert sum(one.nbytes for one in stored) * 8 / (10 * width) == bits
    assert all(len(one) == 10 and not one.requires_grad for one in stored)  # rows on dim 0: it shards as it is


def test_double_quantisation_costs_little() -> None:
    dense = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
    once, twice = (
        (NF4(double_quant=double).freeze(dense).dense(torch.float32) - dense).pow(2).mean() for double in (False, True)
    )
    assert once < twice * 1.0001 and twice < 1.01 * once


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)])
def test_linear_and_its_gradient_are_those_of_the_dense_weight(
    kind: type[FourBit], double: bool, dtype: torch.dtype, tolerance: float, computed_by: str
) -> None:
    generator = torch.Generator().manual_seed(1)
    frozen = kind.model_validate({"double_quant": double}).freeze(torch.randn(96, 128, generator=generator))
    exact = frozen.dense(torch.float64)
    x = torch.randn(40, 128, generator=generator).to(dtype).requires_grad_()
    dy = torch.randn(40, 96, generator=generator).to(dtype)
    y = lora_linear(x, frozen)
    y.backward(dy)
    assert x.grad is not None
    rounded = frozen.dense(dtype).double()  # in bfloat16 the weight is rounded once, and the result once
    wanted, wanted_dx = x.detach().double() @ rounded.T, dy.double() @ rounded
    torch.testing.assert_close(y.double(), wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()) / 2)
    torch.testing.assert_close(
        x.grad.double(), wanted_dx, rtol=tolerance, atol=tolerance * float(wanted_dx.abs().max()) / 2
    )
    assert (rounded - exact).abs().max() <= 2**-9 * exact.abs().max() * (dtype == torch.bfloat16)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("width", [64, 65])
def test_numbers_that_are_not_finite_are_refused(value: float, width: int, computed_by: str) -> None:
    dense = torch.ones(3, width)
    dense[1, -1] = value
    with pytest.raises(CheckpointError, match="not finite"):
        NF4().freeze(dense)
