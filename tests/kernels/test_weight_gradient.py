"""A weight's gradient on matrix tiles, and gradients that go straight to where they belong, against the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorikeet.kernels import build, linear
from lorikeet.kernels import weight_gradient as compiled
from lorikeet.ops.weight_gradient import product, straight, table_gradient, table_rows, weight_gradient

tiles = pytest.mark.skipif(
    build.compiler() is None or linear.computes_with() is None, reason="needs AMX or AVX512-BF16"
)


def random(*sizes: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)).to(dtype)


@tiles
@pytest.mark.parametrize("size", [64, 97, 300])  # whole blocks of 32 tokens, a part of one, several pieces
@pytest.mark.parametrize("width, inside", [(32, 32), (224, 800), (96, 64)])
def test_tiles_equal_the_definition(size: int, width: int, inside: int) -> None:
    dy = random(size, width + 32, seed=0)[:, 32:]  # some columns of a group's gradient
    x, held = random(size, inside, seed=1), random(width, inside, seed=2, dtype=torch.float32)
    assert compiled.serves(dy, x)
    wanted = dy.double().T @ x.double()
    most = float(wanted.abs().max())
    found = compiled.weight_gradient(dy, x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-6 * most)
    added = compiled.weight_gradient(dy, x, held.clone())
    assert torch.equal(added, held + found), "adding is adding the whole sum, in one rounding"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_straight_is_what_autograd_adds_up(dtype: torch.dtype) -> None:
    tokens = torch.tensor([3, 1, 3, 0])
    given = random(4, 8, seed=3, dtype=dtype)

    def passes(way: str) -> Tensor:
        table = torch.nn.Parameter(random(5, 8, seed=4, dtype=dtype))
        for _ in range(2):
            loss = (table_rows(tokens, table, dtype) * given).sum()
            if way == "straight":
                with straight("tables"):
                    loss.backward()
            else:
                loss.backward()
        assert table.grad is not None
        return table.grad

    torch.testing.assert_close(passes("straight"), passes("autograd"))


def test_only_what_was_asked_for_goes_straight() -> None:
    weight = torch.nn.Parameter(random(3, 4, seed=5, dtype=torch.float32))
    dy, x = random(6, 3, seed=6, dtype=torch.float32), random(6, 4, seed=7, dtype=torch.float32)
    weight.grad = torch.ones(3, 4)
    wanted = product(dy, x, torch.float32)
    handed = weight_gradient(weight, dy, x)
    assert handed is not None and torch.equal(handed, wanted) and torch.equal(weight.grad, torch.ones(3, 4))
    with straight("tables"):
        assert weight_gradient(weight, dy, x) is not None, "its hook is to hear of it"
    with straight("all"):
        assert weight_gradient(weight, dy, x) is None
    torch.testing.assert_close(weight.grad, wanted + 1)
    made = weight * 1
    with straight("all"):
        handed = table_gradient(made, wanted, torch.tensor(2.0))
    assert handed is not None and torch.equal(handed, wanted * 2), "no parameter, so autograd goes on from it"
