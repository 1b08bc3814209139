"""What `FrozenWeight` asks of every kind, as the folder lists them."""

from __future__ import annotations

import pytest
import torch

from lorikeet.base.kinds import kind_class, kinds
from lorikeet.plan.tensors import Tensors
from lorikeet.quant._contract import FrozenWeight, Quant

CPU = torch.device("cpu")
ROWS, WIDTH = 1024, 8192  # a down_proj: few rows, and long ones


def bytes_kept(weight: FrozenWeight) -> int:
    return sum(tensor.nbytes for tensor in (*weight.parameters(), *weight.buffers()))


@pytest.mark.parametrize("kind", kinds("lorikeet.quant"))
def test_rounding_takes_little_room_beside_the_dense_tensor(kind: str, computed_by: str) -> None:
    """Loading promises one dense tensor above what is kept, so a kind rounds a part of it at a time."""
    quant = kind_class("lorikeet.quant", Quant, kind).model_validate({"kind": kind})
    dense = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    with Tensors(fake=False) as watched:
        kept = quant.empty(ROWS, WIDTH, torch.bfloat16, CPU)
        kept.write(0, dense)
    beside = watched.peak.bytes - bytes_kept(kept) - dense.nbytes
    assert beside <= dense.nbytes, f"{beside >> 20} MiB beside {dense.nbytes >> 20}"
