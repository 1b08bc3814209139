"""GPTQ's arithmetic: less error than rounding to nearest, the same as it where there is nothing to gain, and the
definition column by column."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from lorikeet.base.errors import ModelError
from lorikeet.quant._gptq_round import grid, round_to_nearest, to_codes
from lorikeet.quant._gptq_solver import Hessian, SolverOptions, solve
from lorikeet.quant.gptq import Gptq


def _problem(out: int, width: int, seed: int, rows: int = 400) -> tuple[Tensor, Tensor]:
    """A weight, and inputs that depend on one another and differ in size, as those of networks do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5 + torch.eye(width)
    sizes = torch.randn(width, generator=generator).exp()
    x = torch.randn(rows, width, generator=generator) @ mixing * sizes
    return torch.randn(out, width, generator=generator), x


def _hessian(x: Tensor) -> Tensor:
    found = Hessian(x.shape[1], x.device)
    for part in x.split(150):
        found.add(part)
    return found.matrix


def test_the_hessian_is_that_of_all_batches():
    _, x = _problem(1, 24, 0)
    torch.testing.assert_close(_hessian(x), 2 / len(x) * x.T @ x, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([-1, 16, 48, 128, 200]),
    desc_act=st.booleans(),
    static_groups=st.booleans(),
    sym=st.booleans(),
    mse=st.booleans(),
    seed=st.integers(0, 100),
)
def test_less_error_than_rounding_to_nearest(bits, group_size, desc_act, static_groups, sym, mse, seed):
    weight, x = _problem(24, 200, seed)
    options = SolverOptions(
        bits=bits, group_size=group_size, desc_act=desc_act, static_groups=static_groups, sym=sym, mse=mse
    )
    solved = solve(weight, _hessian(x), options)
    # greedy, one column after the other: at 2 bits it may lose a little to rounding, where that happens to be lucky
    assert solved.error < solved.nearest_error * (1.2 if bits == 2 else 1)
    y, moved = x @ weight.T, x @ (weight - solved.dense()).T
    assert solved.error == pytest.approx(float(moved.square().sum() / y.square().sum()), rel=0.02)
    assert int(solved.codes.max()) < 1 << bits
    in_order = torch.arange(200) // (200 if group_size == -1 else group_size)
    if static_groups or not desc_act:
        assert torch.equal(solved.g_idx.long(), in_order)
    assert torch.equal(solved.g_idx.long().sort().values, in_order)


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("desc_act", [True, False])
def test_where_inputs_do_not_depend_on_one_another_it_is_rounding_to_nearest(sym, desc_act):
    weight, _ = _problem(16, 96, 1)
    solved = solve(weight, torch.eye(96), SolverOptions(group_size=32, sym=sym, desc_act=desc_act))
    codes, zeros, scales = round_to_nearest(weight, 4, 32, sym=sym)
    assert torch.equal(solved.codes, codes)
    assert torch.equal(solved.zeros, zeros) and torch.equal(solved.scales, scales)
    assert solved.error == solved.nearest_error


def test_it_is_the_paper_s_procedure_column_by_column():
    """One column at a time in float64, the inverse Hessian downdated by elimination instead of Cholesky."""
    weight, x = _problem(8, 40, 2)
    hessian, bits, size = _hessian(x), 4, 8
    h = hessian.double() + torch.eye(40).double() * hessian.diagonal().mean().double() * 0.01
    w, inverse, wanted = weight.double().clone(), torch.linalg.inv(h), torch.zeros(8, 40)
    for i in range(40):
        if i % size == 0:
            scales, zeros = grid(w[:, i : i + size].float(), bits, sym=True)
        wanted[:, i] = to_codes(w[:, i].float(), scales, zeros, bits)
        error = (w[:, i] - (wanted[:, i] - zeros) * scales) / inverse[i, i]
        w -= error[:, None] * inverse[i][None]
        inverse = inverse - inverse[:, i : i + 1] @ inverse[i : i + 1] / inverse[i, i]
    solved = solve(weight, hessian, SolverOptions(group_size=size, desc_act=False))
    assert (solved.codes.float() == wanted).float().mean() > 0.995  # a tie may round otherwise in float32


def test_order_and_damping_matter():
    weight, x = _problem(32, 128, 3, rows=2000)
    hessian = _hessian(x)
    plain = solve(weight, hessian, SolverOptions(group_size=32, desc_act=False))
    ordered = solve(weight, hessian, SolverOptions(group_size=32, desc_act=True, static_groups=False))
    timid = solve(weight, hessian, SolverOptions(group_size=32, desc_act=False, damp_percent=0.99))
    assert ordered.error < plain.error < timid.error < plain.nearest_error
    assert not torch.equal(ordered.g_idx, plain.g_idx)


def test_inputs_that_never_come_and_rows_too_few_to_invert():
    weight, x = _problem(8, 64, 4, rows=5)  # rank 5 of 64
    x[:, 7] = 0
    solved = solve(weight, _hessian(x), SolverOptions(group_size=16))
    assert torch.isfinite(solved.dense()).all() and solved.error < solved.nearest_error


def test_what_is_solved_reads_back_as_what_it_stands_for():
    weight, x = _problem(64, 64, 5)
    options = SolverOptions(group_size=16, static_groups=False)
    solved = solve(weight, _hessian(x), options)
    kept = Gptq(bits=4, group_size=16).empty(32, 64, torch.float32, torch.device("cpu"))
    kept.take(0, 32, solved.parts(4, slice(32, 64), v1=True))
    assert torch.equal(kept.dense(torch.float32), solved.dense()[32:])


def test_a_searched_grid_is_no_worse():
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(6)) ** 3
    errors = []
    for search in (False, True):
        scales, zeros = (found[:, None] for found in grid(weight, 3, sym=True, search=search))
        errors.append((((to_codes(weight, scales, zeros, 3) - zeros) * scales - weight).abs() ** 2.4).sum(-1))
    assert (errors[1] <= errors[0]).all() and (errors[1] < errors[0]).any()


@pytest.mark.parametrize("broken", ["weight", "hessian"])
def test_numbers_that_are_not_finite_are_refused(broken):
    weight, x = _problem(4, 16, 7)
    hessian = _hessian(x)
    (weight if broken == "weight" else hessian)[2, 3] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        solve(weight, hessian, SolverOptions())


@pytest.mark.parametrize("wrong", [{"bits": 5}, {"group_size": 0}, {"damp_percent": 0}, {"damp_percent": 1.5}])
def test_options_that_mean_nothing(wrong):
    with pytest.raises(ValidationError):
        SolverOptions(**wrong)
