"""The compiled thin products of low-rank updates against plain matmuls in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lorikeet.ops import kernels
from lorikeet.ops.counting import counting
from lorikeet.ops.kernels import build, low_rank

pytestmark = pytest.mark.skipif(build.build() is None, reason="no C++ compiler here")
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 4e-3}
SHAPES = [(1, 8, [8], [8]), (33, 70, [31, 64, 1], [8, 8, 8]), (100, 577, [1100], [3]), (65, 32, [40, 40], [16, 5])]


def random(*sizes: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.shape == expected.shape
    assert (found.double() - expected).norm() <= ROUNDING[dtype] * expected.norm()


class Case:
    """tokens T, width of x, widths of the members' outputs, ranks; y and dy lie within wider rows."""

    def __init__(self, tokens: int, width: int, outs: list[int], ranks: list[int], dtype: torch.dtype):
        self.x = random(tokens, width + 3, seed=0, dtype=dtype)[:, :width]
        self.y = random(tokens, sum(outs) + 5, seed=1, dtype=dtype)[:, 2 : 2 + sum(outs)]
        self.z = random(tokens, sum(ranks), seed=2, dtype=dtype)
        self.a = random(sum(ranks), width, seed=3)
        self.bs = [random(out, rank, seed=4 + i) for i, (out, rank) in enumerate(zip(outs, ranks))]
        ends = torch.tensor(outs).cumsum(0).tolist()
        self.rows = [slice(end - out, end) for end, out in zip(ends, outs)]
        self.scalings = [0.5 + i for i in range(len(outs))]
        self.parts = [part.double() for part in self.z.split(ranks, dim=1)]


@pytest.fixture(params=SHAPES, ids=str)
def shape(request: pytest.FixtureRequest) -> tuple:
    return request.param


@pytest.fixture(params=list(ROUNDING), ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def test_forward(shape: tuple, dtype: torch.dtype) -> None:
    case = Case(*shape, dtype)
    assert low_rank.serves(sum(shape[3]), case.x, case.y)
    z = low_rank.down(case.x, case.a)
    assert z.dtype == dtype
    close(z, case.x.double() @ case.a.double().T, dtype)
    expected, around = case.y.double().clone(), case.y._base
    assert around is not None
    beside = around[:, :2].clone(), around[:, -3:].clone()
    for part, b, rows, scaling in zip(case.parts, case.bs, case.rows, case.scalings):
        expected[:, rows] += scaling * part @ b.double().T
    low_rank.up_add(case.y, case.z, case.bs, case.rows, case.scalings)
    close(case.y, expected, dtype)
    assert torch.equal(around[:, :2], beside[0]) and torch.equal(around[:, -3:], beside[1])


def test_backward(shape: tuple, dtype: torch.dtype) -> None:
    case = Case(*shape, dtype)
    dz, dbs = low_rank.backward_up(case.y, case.z, case.bs, case.rows, case.scalings)
    dy, expected = case.y.double(), []
    for part, b, db, rows, scaling in zip(case.parts, case.bs, dbs, case.rows, case.scalings):
        expected.append(scaling * dy[:, rows] @ b.double())
        assert db.dtype == torch.float32 and db.is_contiguous()
        close(db, scaling * dy[:, rows].T @ part, torch.float32)
    close(dz, torch.cat(expected, dim=1), dtype)
    dx = random(*case.x.shape, seed=9, dtype=dtype)
    added = dx.double() + case.z.double() @ case.a.double()
    da = low_rank.backward_down(case.z, case.x, case.a, dx)
    assert da.dtype == torch.float32
    close(da, case.z.double().T @ case.x.double(), torch.float32)
    close(dx, added, dtype)
    assert torch.equal(low_rank.backward_down(case.z, case.x, case.a, None), da)


def test_many_ranks() -> None:
    case = Case(40, 50, [30, 20], [64, 64], torch.float32)
    close(low_rank.down(case.x, case.a), case.x.double() @ case.a.double().T, torch.float32)
    assert not low_rank.serves(low_rank.MOST + 1, case.x)


def test_the_same_bits_again(dtype: torch.dtype) -> None:
    case, before = Case(200, 96, [96], [8], dtype), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first = low_rank.backward_up(case.y, case.z, case.bs, case.rows, case.scalings)
        for _ in range(5):
            again = low_rank.backward_up(case.y, case.z, case.bs, case.rows, case.scalings)
            assert torch.equal(first[0], again[0]) and torch.equal(first[1][0], again[1][0])
    finally:
        torch.set_num_threads(before)


def test_what_is_no_number_stays_none() -> None:
    case = Case(40, 64, [64], [8], torch.bfloat16)
    case.x[3, 5] = float("nan")
    case.z[7, 1] = float("inf")
    assert low_rank.down(case.x, case.a).isnan().any(1).nonzero().flatten().tolist() == [3]
    low_rank.up_add(case.y, case.z, case.bs, case.rows, case.scalings)
    assert (~case.y.isfinite()).any(1).nonzero().flatten().tolist() == [7]


def test_what_the_kernel_is_not_for() -> None:
    x = random(4, 8, seed=0)
    assert not low_rank.serves(8, x.double()) and not low_rank.serves(8, x.t()) and not low_rank.serves(0, x)
    assert not low_rank.serves(8, x, x.bfloat16())
    try:
        kernels.choose("eager")
        assert not low_rank.serves(8, x)
    finally:
        kernels.choose("auto")


def test_planning_sees_shapes_and_operations() -> None:
    reported: list[float] = []
    with FakeTensorMode(), counting(lambda name, flops: reported.append(flops)):
        x, z, b = torch.empty(6, 10), torch.empty(6, 8), torch.empty(12, 8)
        assert low_rank.down(x, torch.empty(8, 10)).shape == (6, 8)
        dz, dbs = low_rank.backward_up(torch.empty(6, 12), z, [b], [slice(0, 12)], [1.0])
        assert dz.shape == (6, 8) and dbs[0].shape == (12, 8)
        assert low_rank.backward_down(z, x, torch.empty(8, 10), torch.empty_like(x)).shape == (8, 10)
    assert reported == [2 * 6 * 10 * 8, 4 * 6 * 12 * 8, 4 * 6 * 10 * 8]
