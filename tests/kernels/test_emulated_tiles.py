"""The code for matrix tiles (AMX) on a processor without them: its instructions in software, the same tests."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import test_few_rows, test_kernels, test_weight_gradient
from lorikeet import kernels
from lorikeet.base.machine import cpu_flags
from lorikeet.kernels import attention, build, few_rows, linear, weight_gradient
from ops import test_attention

KERNELS = ("linear", "weight_gradient", "few_rows", "attention", "dequantise", "dequantise_gptq")
ASKS = ('asm volatile("ldtilecfg %0" ::"m"(config));', "syscall(SYS_arch_prctl, 0x1023, 18) == 0")
LENT = ("(void)config;", "true")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    """The kernels as they are for AMX, but for what asks the processor and the system for its tiles."""
    compiler = shutil.which("g++")
    if compiler is None or "avx512_bf16" not in cpu_flags():
        pytest.skip("needs g++ and AVX512-BF16")
    folder = tmp_path_factory.mktemp("kernels")
    for file in [*build.FOLDER.glob("*.h"), *build.FOLDER.glob("*.cpp")]:
        text = file.read_text(encoding="utf-8")
        for asks, lent in zip(ASKS, LENT):
            assert (asks in text) == (file.name == "tiles.h")
            text = text.replace(asks, lent)
        (folder / file.name).write_text(text, encoding="utf-8")
    told = ["-D__AMX_BF16__", "-include", str(Path(__file__).with_name("emulated_tiles.h")), "-shared"]
    for name in KERNELS:
        command = [compiler, *build.FLAGS, *told, str(folder / f"{name}.cpp"), "-o", str(folder / f"{name}.so")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return {name: ctypes.CDLL(str(folder / f"{name}.so")) for name in KERNELS}


@pytest.fixture(autouse=True)
def emulated(libraries: dict[str, ctypes.CDLL], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """These in place of this processor's, for one test."""
    kernels.choose("auto")  # whatever was opened before
    monkeypatch.setattr(build, "load", libraries.__getitem__)
    for module in (linear, weight_gradient, few_rows):
        for name, kernel in vars(module).items():
            if isinstance(kernel, kernels.Kernel):
                monkeypatch.setattr(module, name, kernels.Kernel(kernel.library, kernel.function))
    for table in (attention._forward, attention._backward):
        for dtype, kernel in table.items():
            if kernel.library in KERNELS:
                monkeypatch.setitem(table, dtype, kernels.Kernel(kernel.library, kernel.function))
    linear.computes_with.cache_clear()
    yield
    linear.computes_with.cache_clear()


def test_they_say_that_they_have_tiles() -> None:
    assert linear.computes_with() == "tiles"


@pytest.mark.parametrize(("out", "inside"), [(96, 64), (32, 320), (64, 1600)])
def test_products(out: int, inside: int) -> None:
    for rows in (64, 65, 200):
        test_kernels.test_products_on_tiles_equal_plain_ones(rows, out, inside)
        test_kernels.test_low_rank_updates_on_tiles_equal_plain_ones(rows, out, inside)


def test_gradients() -> None:
    test_kernels.test_the_factors_gradients_on_tiles_equal_plain_ones()
    test_weight_gradient.test_tiles_equal_the_definition(97, 224, 800)


@pytest.mark.parametrize("rows", [1, 5, 17, 33, 64, 70])
def test_few_rows_at_once(rows: int) -> None:
    for rank in (0, 32):
        test_few_rows.test_few_rows_equal_the_plain_product(rows, rank)


@pytest.mark.parametrize("quant", test_few_rows.KINDS, ids=str)
def test_few_rows_of_quantised_weights(quant: dict[str, Any]) -> None:
    for rows in (1, 33, 70):
        test_few_rows.test_a_quantised_weight_gives_the_bits_of_its_dense_form(quant, rows)


@pytest.mark.parametrize("options", [{}, {"window": 37}, {"softcap": 2.0}], ids=str)
def test_attention_and_its_gradients(options: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    test_attention.test_values_and_gradients("compiled", torch.bfloat16, 3, 1, 64, options, monkeypatch)
