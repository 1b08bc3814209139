"""The compiled kernels against the definitions: values and gradients, float32 tightly and bfloat16 to its rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorikeet import kernels
from lorikeet.kernels import build, linear
from lorikeet.ops.heads import HeadNorms, reference_split_heads, split_heads
from lorikeet.ops.lora_linear import LowRank, lora_linear, reference_lora_linear
from lorikeet.ops.norm import Normed, reference_rms_norm, rms_norm
from lorikeet.ops.rope import Rope
from lorikeet.ops.swiglu import Activation, Gated, reference_swiglu, swiglu
from lorikeet.quant.none import NoQuant

compiled = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")
tiles = pytest.mark.skipif(
    build.compiler() is None or linear.computes_with() is None, reason="needs AMX or AVX512-BF16"
)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def random(*sizes: int, seed: int, dtype: torch.dtype, grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*sizes, generator=generator).to(dtype).requires_grad_(grad)


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Within the tolerance of the largest value."""
    assert found.dtype == dtype and found.shape == wanted.shape
    most = float(wanted.detach().abs().max())
    torch.testing.assert_close(found.double(), wanted.double(), rtol=0, atol=TOLERANCE[dtype] * most)


def same(
    fast: Callable[..., Tensor], slow: Callable[..., Tensor], inputs: Sequence[Tensor], others: Sequence[Tensor] = ()
) -> None:
    """fast in its dtype = slow in float64, and the gradients for `inputs`."""
    dtype = inputs[0].dtype
    wide = [x.detach().double().requires_grad_() for x in inputs]
    found, wanted = fast(*inputs, *others), slow(*wide, *(x.double() for x in others))
    close(found, wanted, dtype)
    probe = random(*wanted.shape, seed=77, dtype=dtype, grad=False)
    ours = torch.autograd.grad(found, inputs, probe)
    for left, right in zip(ours, torch.autograd.grad(wanted, wide, probe.double())):
        close(left, right, left.dtype if left.dtype in TOLERANCE else dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("width", [3, 37, 576])
def test_norm_equals_its_definition(computed_by: str, dtype: torch.dtype, offset: float, width: int) -> None:
    x, weight = random(7, width, seed=0, dtype=dtype), random(width, seed=1, dtype=dtype, grad=False)
    same(
        lambda x: rms_norm(x, weight, 1e-5, offset), lambda x: reference_rms_norm(x, weight.double(), 1e-5, offset), [x]
    )


@compiled
def test_a_compiled_norm_rounds_as_torch_does() -> None:
    x, weight = random(50, 64, seed=0, dtype=torch.bfloat16), random(64, seed=1, dtype=torch.bfloat16)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), reference_rms_norm(x, weight, 1e-6), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
def test_gated_units_equal_their_definition(computed_by: str, dtype: torch.dtype, activation: Activation) -> None:
    x = (random(9, 2 * 53, seed=0, dtype=dtype).detach() * 4).requires_grad_()
    same(lambda x: swiglu(x, activation), lambda x: reference_swiglu(x, activation), [x])


@pytest.mark.parametrize("value", [-200.0, -88.0, -1e-30, 0.0, 88.0, 200.0, float("inf"), float("nan")])
def test_a_gated_unit_of_an_extreme_value_is_torch_s(computed_by: str, value: float) -> None:
    x = torch.tensor([[value, 1.0]])
    torch.testing.assert_close(swiglu(x), reference_swiglu(x), equal_nan=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rotary", [16, 8])
@pytest.mark.parametrize("normed", [None, 0.0, 1.0])
def test_split_heads_equal_their_definition(
    computed_by: str, dtype: torch.dtype, rotary: int, normed: float | None
) -> None:
    cos, sin = Rope(rotary, 100.0, 64).table(torch.tensor([0, 3, 1, 40, 2]), dtype)
    qkv = random(5, 4 + 2 * 2, 16, seed=0, dtype=dtype)
    q, k = random(16, seed=1, dtype=dtype, grad=False), random(16, seed=2, dtype=dtype, grad=False)

    def norms(like: Tensor) -> HeadNorms | None:
        return None if normed is None else HeadNorms(q.to(like.dtype), k.to(like.dtype), 1e-6, normed)

    same(
        lambda x, cos, sin: torch.cat(split_heads(x * 1, cos, sin, 4, 2, norms(x)), dim=1),
        lambda x, cos, sin: torch.cat(reference_split_heads(x, cos, sin, 4, 2, norms(x)), dim=1),
        [qkv],
        [cos, sin],
    )


def test_split_heads_gives_up_no_gradient_where_a_part_is_not_used(computed_by: str) -> None:
    cos, sin = Rope(4, 100.0, 64).table(torch.arange(3), torch.float32)
    x = random(3, 3, 4, seed=0, dtype=torch.float32)
    _, _, v = split_heads(x * 1, cos, sin, 1, 1)
    (grad,) = torch.autograd.grad(v.sum(), x)
    assert (grad[:, 2] == 1).all() and (grad[:, :2] == 0).all()


@tiles
@pytest.mark.parametrize("rows", [64, 65, 100, 1030])
@pytest.mark.parametrize(("out", "inside"), [(96, 64), (32, 320), (224, 32), (64, 1600)])
def test_products_on_tiles_equal_plain_ones(rows: int, out: int, inside: int) -> None:
    dtype = torch.bfloat16
    x, dy = (random(rows, n, seed=n, dtype=dtype, grad=False) for n in (inside, out))
    weight = random(out, inside, seed=3, dtype=dtype, grad=False)
    close(linear.forward(x, weight), x.double() @ weight.double().T, dtype)
    close(linear.backward(dy, weight), dy.double() @ weight.double(), dtype)
    wide = random(rows, inside + 32, seed=5, dtype=dtype, grad=False)[:, 32:]  # rows further apart
    close(linear.forward(wide, weight), wide.double() @ weight.double().T, dtype)


def low_rank(out: int, inside: int) -> tuple[Tensor, linear.Factors]:
    """A weight, and members of ranks 24 and 11 on its first and its last rows."""
    weight = random(out, inside, seed=3, dtype=torch.bfloat16, grad=False)
    rows = [slice(0, 16), slice(20, out)]
    sizes = [size for place, rank in zip(rows, (24, 11)) for size in ((rank, inside), (place.stop - place.start, rank))]
    tensors = [random(*size, seed=i, dtype=torch.bfloat16, grad=False).float() for i, size in enumerate(sizes)]
    return weight, linear.Factors(tensors, rows, [1.0, 2.0])


@tiles
@pytest.mark.parametrize("rows", [64, 65, 1030])
@pytest.mark.parametrize(("out", "inside"), [(96, 64), (32, 320), (64, 1600)])
def test_low_rank_updates_on_tiles_equal_plain_ones(rows: int, out: int, inside: int) -> None:
    dtype = torch.bfloat16
    weight, factors = low_rank(out, inside)
    x, dy = (random(rows, n, seed=n, dtype=dtype, grad=False) for n in (inside, out))
    y, kept = linear.low_rank_forward(x, weight, factors)
    dx, dz = linear.low_rank_backward(dy, weight, factors, kept, wants_input=True)
    wanted_y, wanted_dx = x.double() @ weight.double().T, dy.double() @ weight.double()
    column, a_and_b = 0, iter(factors.tensors)
    for place, scaling, rank in zip(factors.rows, factors.scalings, factors.ranks):
        a, b = next(a_and_b).double(), next(a_and_b).double()
        z = (x.double() @ a.T).to(dtype).double()
        part = dz[:, column : column + rank]
        column += rank
        close(part, scaling * dy[:, place].double() @ b, dtype)
        wanted_y[:, place] += scaling * z @ b.T
        wanted_dx += part.double() @ a
    close(y, wanted_y, dtype)
    assert dx is not None
    close(dx, wanted_dx, dtype)
    assert linear.low_rank_backward(dy, weight, factors, kept, wants_input=False)[0] is None


@tiles
@pytest.mark.parametrize("rows", [64, 65, 1030])
@pytest.mark.parametrize(("out", "inside", "rank"), [(96, 64, 32), (32, 320, 96), (64, 1600, 32)])
def test_updated_products_on_tiles_equal_plain_ones(rows: int, out: int, inside: int, rank: int) -> None:
    dtype = torch.bfloat16
    sizes = ((rows, inside + 32), (out, inside), (rank, inside), (out, rank))
    x, weight, a, b = (random(*size, seed=i, dtype=dtype, grad=False) for i, size in enumerate(sizes))
    x = x[:, 32:]  # rows further apart
    z = (x.double() @ a.double().T).to(dtype).double()
    close(linear.updated(x, weight, a, b), x.double() @ weight.double().T + z @ b.double().T, dtype)


@tiles
def test_the_factors_gradients_on_tiles_equal_plain_ones() -> None:
    weight, factors = low_rank(96, 64)
    x, dy, dz = (random(130, n, seed=n, dtype=torch.bfloat16, grad=False) for n in (64, 96, 64))
    _, kept = linear.low_rank_forward(x, weight, factors)
    z = kept[-130 * factors.rank :].view(130, factors.rank).double()
    grads, column = linear.factor_gradients(dy, dz, x, factors, kept), 0
    for place, scaling, rank, da, db in zip(factors.rows, factors.scalings, factors.ranks, grads[::2], grads[1::2]):
        columns = slice(column, column := column + rank)
        close(da, dz[:, columns].double().T @ x.double(), torch.float32)
        close(db, scaling * dy[:, place].double().T @ z[:, columns], torch.float32)


@tiles
def test_a_product_on_tiles_repeats_bitwise() -> None:
    weight, factors = low_rank(960, 576)
    x = random(500, 576, seed=1, dtype=torch.bfloat16, grad=False)

    def computed() -> list[Tensor]:
        y, kept = linear.low_rank_forward(x, weight, factors)
        dx, dz = linear.low_rank_backward(y, weight, factors, kept, wants_input=True)
        assert dx is not None
        return [y, dx, *linear.factor_gradients(y, dz, x, factors, kept)]

    first, threads = computed(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        again = computed()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(left, right) for left, right in zip(first, again))


@pytest.mark.parametrize("before", ["nothing", "norm", "gate"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [5, 130])
def test_lora_behind_a_prologue_equals_its_definition(
    computed_by: str, before: str, dtype: torch.dtype, rows: int
) -> None:
    """On tiles (bfloat16, 130 rows), and in plain PyTorch."""
    inside, sizes, ranks = 64, (64, 32), (8, 3)
    source = random(rows, 2 * inside if before == "gate" else inside, seed=0, dtype=dtype)
    weight = random(sum(sizes), inside, seed=1, dtype=dtype, grad=False)
    bias, norm = (random(n, seed=2, dtype=dtype, grad=False) for n in (sum(sizes), inside))
    members = [LowRank(slice(0, 64), 2.0), LowRank(slice(64, 96), 0.7)]
    factors = [
        factor
        for i, (size, rank) in enumerate(zip(sizes, ranks))
        for factor in (
            random(rank, inside, seed=5 + i, dtype=torch.float32),
            random(size, rank, seed=9 + i, dtype=torch.float32),
        )
    ]
    frozen = NoQuant().freeze(weight)
    prologue = {"nothing": None, "norm": Normed(norm, 1e-5), "gate": Gated()}[before]

    def fast(source: Tensor, *factors: Tensor) -> Tensor:
        return lora_linear(source, frozen, bias, members, factors, prologue=prologue)

    def slow(source: Tensor, *factors: Tensor) -> Tensor:
        x = source
        if before == "norm":
            x = reference_rms_norm(source, norm.double(), 1e-5)
        elif before == "gate":
            x = reference_swiglu(source)
        return reference_lora_linear(x, weight.double(), bias.double(), members, factors)

    wide = [x.detach().double().requires_grad_() for x in (source, *factors)]
    found, wanted = fast(source, *factors), slow(*wide)
    close(found, wanted, dtype)
    probe = random(*wanted.shape, seed=77, dtype=dtype, grad=False)
    ours = torch.autograd.grad(found, [source, *factors], probe)
    for left, right in zip(ours, torch.autograd.grad(wanted, wide, probe.double())):
        torch.testing.assert_close(left.double(), right, rtol=0, atol=TOLERANCE[dtype] * float(right.abs().max()))


def test_identity_tells_the_ways_apart() -> None:
    kernels.choose("eager")
    try:
        assert kernels.identity() == "eager" and not kernels.serves(torch.zeros(2))
    finally:
        kernels.choose("auto")
    if build.compiler() is not None:
        assert kernels.identity().startswith("compiled ") and kernels.serves(torch.zeros(2))
    assert not kernels.serves(torch.zeros(2, dtype=torch.float64))


TRAIN = """
import sys
sys.modules["ziglang"] = None  # as if it were not installed
import torch
from lorikeet import kernels
from lorikeet.ops.norm import rms_norm
print(kernels.identity(), rms_norm(torch.ones(2, 3), torch.ones(3), 1e-6).sum().item())
"""


def run(tmp_path: Path, path: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    return subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, env=environment, check=False)


def test_without_a_compiler_plain_pytorch_computes(tmp_path: Path) -> None:
    done = run(tmp_path, str(tmp_path))
    assert done.returncode == 0 and done.stdout.split()[0] == "eager", done.stderr


def test_a_compiler_that_fails_is_told_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 1\n")
    broken.chmod(0o755)
    done = run(tmp_path, f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 0 and done.stdout.split()[0] == "eager", done.stderr
    assert "plain PyTorch computes (slower): no such luck" in done.stderr
    assert not list((tmp_path / "cache").rglob("*.unfinished"))


def test_threads_are_asked_of_the_loaded_runtime_alone() -> None:
    """clang's `omp parallel` calls another runtime, and without -fopenmp none: only `omp simd` may stand there."""
    for file in [*build.sources(), *build.FOLDER.glob("*.h")]:
        told = [line.strip() for line in file.read_text().splitlines() if line.strip().startswith("#pragma omp")]
        assert [line for line in told if not line.startswith("#pragma omp simd")] == [], file.name


PACKAGE = """
import sys
sys.path.insert(0, sys.argv[1])
from lorikeet import kernels
from lorikeet.kernels import build
print(build.compiler(), build._front()[1:], build._linker()[1:4])
"""


def test_a_compiler_that_is_a_package_serves_where_the_system_has_none(tmp_path: Path) -> None:
    (tmp_path / "ziglang").mkdir()
    (tmp_path / "ziglang" / "__init__.py").touch()
    command = [sys.executable, "-c", PACKAGE, str(tmp_path)]
    environment = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == f"{tmp_path}/ziglang/zig ['c++'] ['ld.lld', '-shared', '-z']"
