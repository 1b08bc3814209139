"""Products of few rows: what a plain matmul gives, and only where the kernel may compute them."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorikeet import kernels
from lorikeet.base.kinds import kind_class
from lorikeet.base.machine import cpu_flags
from lorikeet.kernels import Kernel, build, few_rows
from lorikeet.quant._contract import FrozenWeight, Quant
from lorikeet.quant.gptq import GptqWeight


@pytest.fixture(autouse=True)
def compiled() -> None:
    kernels.choose("auto")  # whatever was opened before


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 16, 17, 33, 40, 64, 70, 96])
@pytest.mark.parametrize("rank", [0, 32, 64])
def test_few_rows_equal_the_plain_product(rows: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(rows + rank)
    x, weight, z, low = (
        torch.randn(size, generator=generator).bfloat16() for size in ((rows, 96), (80, 96), (rows, rank), (80, rank))
    )
    if not kernels.serves(x):
        pytest.skip("no compiler here")
    expected = x.float() @ weight.float().T + z.float() @ low.float().T
    found = few_rows.forward(x, weight, z, low) if rank else few_rows.forward(x, weight)
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)


KINDS: list[dict[str, Any]] = [
    {"kind": "int8"},
    {"kind": "nf4"},
    {"kind": "fp4", "block_size": 32, "double_quant": True},
    *({"kind": "gptq", "bits": bits, "group_size": 40, "sym": False} for bits in (2, 3, 4, 8)),
    {"kind": "gptq", "bits": 4, "group_size": 33},
    *({"kind": "gptq", "bits": bits, "group_size": 2, "act_order": True} for bits in (2, 3, 4, 8)),
]


def frozen_as(quant: dict[str, Any], weight: Tensor) -> FrozenWeight:
    """`act_order` is no option, but what a checkpoint may bring: inputs are grouped in another order than theirs."""
    options = {name: value for name, value in quant.items() if name != "act_order"}
    kept = kind_class("lorikeet.quant", Quant, quant["kind"]).model_validate(options).freeze(weight)
    if "act_order" in quant:
        assert isinstance(kept, GptqWeight)
        order = torch.randperm(kept.in_features, generator=torch.Generator().manual_seed(1))
        kept._order(0, kept.out_features, order.int() // quant["group_size"])
    return kept


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 17, 40, 64])
@pytest.mark.parametrize("quant", KINDS, ids=str)
def test_a_quantised_weight_gives_the_bits_of_its_dense_form(quant: dict[str, Any], rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    sizes = (rows, 96), (80, 96), (rows, 32), (80, 32)
    x, weight, z, low = (torch.randn(size, generator=generator).bfloat16() for size in sizes)
    if not kernels.serves(x):
        pytest.skip("no compiler here")
    kept = frozen_as(quant, weight)
    assert kept.has_few_rows() and few_rows.serves_sizes(x, 80, 96)
    dense = kept.dense(torch.bfloat16)
    assert torch.equal(kept.few_rows(x, None, None), few_rows.forward(x, dense))
    assert torch.equal(kept.few_rows(x, z, low), few_rows.forward(x, dense, z, low))


def test_what_the_kernel_does_not_take() -> None:
    x, weight = torch.zeros(4, 64, dtype=torch.bfloat16), torch.zeros(32, 64, dtype=torch.bfloat16)
    assert not few_rows.serves(x.float(), weight.float())
    assert not few_rows.serves(x.expand(4, 64)[:, :48], weight[:, :48])
    assert not few_rows.serves(x, weight[:24])
    assert not few_rows.serves(torch.zeros(97, 64, dtype=torch.bfloat16), weight)


@pytest.mark.parametrize("processor", ["haswell", "x86-64", "skylake-avx512"])
def test_older_processors_compute_the_same(processor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matrix tiles, and without instructions for bfloat16: compiled for them, run here."""
    needed = {"haswell": {"avx2", "fma"}, "x86-64": {"sse2"}, "skylake-avx512": {"avx512f", "avx512bw"}}[processor]
    if build.build() is None or not needed <= cpu_flags():
        pytest.skip("no compiler, or another kind of processor")
    flags = [f"-march={processor}" if flag.startswith("-march") else flag for flag in build.FLAGS]
    library = tmp_path / "few_rows.so"
    command = [*build._front(), *flags, "-shared", str(build.FOLDER / "few_rows.cpp"), "-o", str(library)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("the compiler does not link this way")
    x, weight = (
        torch.randn(size, generator=torch.Generator().manual_seed(1)).bfloat16() for size in ((33, 96), (80, 96))
    )
    frozen = [frozen_as(quant, weight) for quant in KINDS]
    made = [(kept, kept.dense(torch.bfloat16), x) for kept in frozen]
    monkeypatch.setattr(build, "load", lambda name: ctypes.CDLL(str(library)))
    for name in ("product", "int8", "four_bit", "gptq"):
        monkeypatch.setattr(few_rows, f"_{name}", Kernel("few_rows", f"few_rows_{name}"))
    for rows in (1, 2, 3, 4, 5, 9, 33):
        test_few_rows_equal_the_plain_product(rows, 32)
        for kept, dense, x in made:
            assert torch.equal(kept.few_rows(x[:rows], None, None), few_rows.forward(x[:rows], dense))
