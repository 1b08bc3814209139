"""int8 by rows: bitsandbytes' numbers, the kernel's bits, half a step of error, bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet import kernels
from lorikeet.base.errors import CheckpointError
from lorikeet.ops.lora_linear import lora_linear
from lorikeet.quant.int8 import Int8, Int8Weight
from quant.made_by_bitsandbytes import MADE, tensor, weight


def test_numbers_are_bitsandbytes() -> None:
    made, found = MADE["int8"], Int8().freeze(weight(0))
    assert isinstance(found, Int8Weight)
    assert torch.equal(found.codes.flatten(), tensor(made["codes"], torch.int8))
    assert torch.equal(found.absmax.flatten(), tensor(made["absmax"], torch.float32))
    assert torch.equal(found.dense(torch.float32).flatten(), tensor(made["dense"], torch.float32))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 9),
    st.integers(1, 200),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    st.integers(0, 8),
)
def test_any_shape_is_kept_to_half_a_step_with_the_kernel_s_bits(
    rows: int, width: int, dtype: torch.dtype, cut: int
) -> None:
    dense = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows + width)).to(dtype)
    found, cut = Int8().empty(rows, width, dtype, dense.device), min(cut, rows)
    found.write(cut, dense[cut:])
    found.write(0, dense[:cut])
    step = dense.float().abs().amax(1, keepdim=True) / 127
    assert ((found.dense(torch.float32) - dense.float()).abs() <= step * 0.5001).all()
    kernels.choose("eager")
    plain = found.dense(dtype)
    kernels.choose("auto")
    assert torch.equal(found.dense(dtype), plain)
    assert torch.equal(found.rows(cut, rows, dtype), plain[cut:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_the_least_numbers_have_the_kernel_s_bits_too(dtype: torch.dtype) -> None:
    dense = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    found = Int8().freeze(dense * torch.tensor([0, 3e-37, 1e-36, 3e-36, 1e-35])[:, None])
    kernels.choose("eager")
    plain = found.dense(dtype)
    kernels.choose("auto")
    assert torch.equal(found.dense(dtype), plain) and plain[1:].any(1).all(), "a processor's rounding loses some"


def test_a_row_of_zeros_stays_zero() -> None:
    assert not Int8().freeze(torch.zeros(2, 5)).dense(torch.float32).any()


def test_bytes_add_up() -> None:
    found = Int8().empty(10, 576, torch.bfloat16, torch.device("cpu"))
    assert sum(one.nbytes for one in found.parameters()) == 10 * (576 + 4)
    assert all(len(one) == 10 and not one.requires_grad for one in found.parameters())


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)])
def test_linear_and_its_gradient_are_those_of_the_dense_weight(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(1)
    frozen = Int8().freeze(torch.randn(96, 128, generator=generator))
    x = torch.randn(40, 128, generator=generator).to(dtype).requires_grad_()
    dy = torch.randn(40, 96, generator=generator).to(dtype)
    y = lora_linear(x, frozen)
    y.backward(dy)
    assert x.grad is not None
    dense = frozen.dense(dtype).double()
    for found, wanted in ((y, x.detach().double() @ dense.T), (x.grad, dy.double() @ dense)):
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    dense = torch.ones(3, 7)
    dense[2, 3] = value
    with pytest.raises(CheckpointError, match="not finite"):
        Int8().freeze(dense)
