"""Products of few rows: what a plain matmul gives, and only where the kernel may compute them."""

from __future__ import annotations

import pytest
import torch

from lorikeet.kernels import few_rows


@pytest.mark.parametrize("rows", [1, 5, 16, 17, 40, 64, 70, 96])
@pytest.mark.parametrize("rank", [0, 32, 64])
def test_few_rows_equal_the_plain_product(rows: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(rows + rank)
    x, weight, z, low = (
        torch.randn(size, generator=generator).bfloat16() for size in ((rows, 96), (80, 96), (rows, rank), (80, rank))
    )
    if not few_rows.serves(x, weight):
        pytest.skip("no matrix tiles here")
    expected = x.float() @ weight.float().T + z.float() @ low.float().T
    found = few_rows.forward(x, weight, z, low) if rank else few_rows.forward(x, weight)
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)


def test_what_the_kernel_does_not_take() -> None:
    x, weight = torch.zeros(4, 64, dtype=torch.bfloat16), torch.zeros(32, 64, dtype=torch.bfloat16)
    assert not few_rows.serves(x.float(), weight.float())
    assert not few_rows.serves(x.expand(4, 64)[:, :48], weight[:, :48])
    assert not few_rows.serves(x, weight[:24])
    assert not few_rows.serves(torch.zeros(97, 64, dtype=torch.bfloat16), weight)
