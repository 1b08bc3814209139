"""Codes are the nearest, the compiled step is the plain one, and trajectories are bitsandbytes' and AdamW's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorikeet import kernels
from lorikeet.kernels import build
from lorikeet.train.optim import OptimOptions, Stepper
from lorikeet.train.optimizers import _blockwise
from train.optimizers.runs import run, stepper

CPU = torch.device("cpu")
EIGHT: Any = {"kind": "adamw_8bit", "min_8bit_size": 1}
# bitsandbytes 0.50.2: create_dynamic_map(signed)[::51], and every 630th number after the steps of `path`
VALUES = {
    True: [-0.992968738079071, -0.2757812738418579, -0.0063437498174608, 0.006906250026077, 0.289843738079071, 1.0],
    False: [0.0, 0.0067656254395843, 0.065546877682209, 0.286328136920929, 0.6449218988418579, 1.0],
}
PATH = [-1.019447, 1.353143, 0.340132, -0.500252, 1.109269, 0.498586, 0.367648, -1.590656, 0.330733, 0.026652]


def path(one: Any, parameter: Tensor) -> None:
    """50 steps of normal gradients for [70, 90]."""
    for step in range(50):
        parameter.grad = torch.randn(70, 90, generator=torch.Generator().manual_seed(1000 + step))
        one()


def start() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(70, 90, generator=torch.Generator().manual_seed(0)))


def ours(optim: Any = EIGHT) -> Tensor:
    parameter = start()
    one = Stepper({"w": parameter}, OptimOptions(optim=optim, weight_decay=0.1, max_grad_norm=0))
    path(lambda: one.step(1e-2), parameter)
    return parameter.detach()


@pytest.mark.parametrize("signed", [True, False])
def test_the_values_are_those_of_bitsandbytes(signed: bool) -> None:
    found = _blockwise.values(signed, CPU)
    assert len(found.unique()) == 256 and torch.equal(found, found.sort().values)
    torch.testing.assert_close(found[::51], torch.tensor(VALUES[signed]), rtol=3e-7, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 700), power=st.integers(0, 8), signed=st.booleans())
def test_each_number_becomes_the_nearest_value(seed: int, count: int, power: int, signed: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(count, generator=generator) * torch.rand(count, generator=generator) ** power
    numbers = numbers if signed else numbers.square()
    codes, magnitudes = _blockwise.quantise(numbers, signed)
    back = _blockwise.dequantise(codes, magnitudes, signed)
    every = magnitudes.repeat_interleave(_blockwise.BLOCK)[:count, None] * _blockwise.values(signed, CPU)
    best = (every - numbers[:, None]).abs().amin(dim=1)
    lifted = ~torch.tensor(signed) & (codes == 1)  # a square never falls to zero
    most = torch.where(lifted, every[:, 1], best * (1 + 1e-5) + 1e-7 * numbers.abs())
    assert ((back - numbers).abs() <= most).all()


def test_zero_stays_zero_and_a_square_above_it_does_not_become_it() -> None:
    numbers = torch.zeros(300)
    numbers[0], numbers[7] = 1.0, 1e-20
    for signed, tiny in ((True, 0.0), (False, 3.25e-7)):
        back = _blockwise.dequantise(*_blockwise.quantise(numbers, signed), signed)
        assert back[0] == 1 and back[7] == pytest.approx(tiny) and back[1:7].abs().max() == back[8:].abs().max() == 0


@pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("size", [(1,), (255,), (256,), (70, 90), (129, 257)])
def test_the_compiled_step_is_the_plain_one(size: tuple[int, ...]) -> None:
    ends = []
    for way in ("auto", "eager"):
        kernels.choose(way)
        one = stepper({"w": size}, EIGHT, weight_decay=0.1)
        run(one, range(12))
        ends.append((one.parameters["w"].detach(), one.state_dict()))
    kernels.choose("auto")
    (left, ours), (right, theirs) = ends
    apart = (left - right).abs()
    # where a square is least, the last bit of its mean decides how far a weight goes
    assert apart.quantile(0.99) < 1e-6 and apart.max() < 1e-3
    for name in ours:
        if ours[name].dtype == torch.uint8:
            differ = (ours[name].int() - theirs[name].int()).abs()
            assert differ.max() <= 1 and (differ > 0).float().mean() < 1e-3
        else:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=0)


def test_the_path_of_bitsandbytes() -> None:
    end = ours()
    wanted = torch.tensor(PATH)
    assert (end.flatten()[::630] - wanted).norm() < 0.01 * (start().detach().flatten()[::630] - wanted).norm()


@pytest.mark.slow
def test_the_path_of_the_bitsandbytes_that_is_installed() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    parameter = start()
    theirs = bitsandbytes.optim.AdamW8bit([parameter], lr=1e-2, weight_decay=0.1)
    path(theirs.step, parameter)
    wanted = parameter.detach()
    assert (ours() - wanted).norm() < 0.01 * (start().detach() - wanted).norm()


@pytest.mark.slow
def test_the_functions_of_bitsandbytes_take_our_states() -> None:
    """What runs on CUDA, here with the package's CPU version of the same functions."""
    pytest.importorskip("bitsandbytes")
    from lorikeet.train.optimizers import _bitsandbytes, _fused
    from lorikeet.train.optimizers._contract import Shared

    shared = Shared(1e-2, 0.1, 0.9, 0.999, 1e-8)
    for begin, move, optim in (
        (_blockwise.begin, _bitsandbytes.adamw_8bit, EIGHT),
        (_fused.begin, _bitsandbytes.adamw_32bit, "adamw_torch"),
    ):
        parameter = start()
        state = begin(parameter)

        def step(parameter: Any = parameter, state: Any = state, move: Any = move) -> None:
            state["step"] += 1
            move(parameter.data, parameter.grad, state, shared)

        path(step, parameter)
        assert (parameter.detach() - ours(optim)).norm() < 0.01 * (parameter - start()).norm()


def test_the_loss_falls_as_with_adamw() -> None:
    """A two-layer network on a teacher's labels: the curves stay within 2 % of each other."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(512, 64, generator=generator)
    y = torch.tanh(x @ torch.randn(64, 8, generator=generator))
    first, second = torch.randn(128, 64, generator=generator) / 8, torch.randn(8, 128, generator=generator) / 11
    curves = []
    for optim in (EIGHT, "adamw_torch"):
        layers = {"a": torch.nn.Parameter(first.clone()), "b": torch.nn.Parameter(second.clone())}
        one, losses = Stepper(layers, OptimOptions(optim=optim, weight_decay=0.01)), []
        for step in range(120):
            part = torch.randint(512, (64,), generator=torch.Generator().manual_seed(step))
            one.clear()
            loss = (torch.relu(x[part] @ layers["a"].T) @ layers["b"].T - y[part]).square().mean()
            one.backward(loss)
            one.step(3e-3)
            losses.append(loss.item())
        curves.append(torch.tensor(losses))
    eight, full = curves
    assert full[-1] < 0.2 * full[0]
    assert ((eight - full).abs() < 0.02 * full + 0.002).all()
