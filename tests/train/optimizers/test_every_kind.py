"""What holds for every optimizer: it goes on to the bit, its state is counted, it learns, and wrong use is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode

from lorikeet import kernels
from lorikeet.base.errors import CheckpointError, RecipeError
from lorikeet.base.kinds import kind_class
from lorikeet.train.optim import OptimOptions, Stepper, other_names
from lorikeet.train.optimizers import _bitsandbytes
from lorikeet.train.optimizers._contract import Optimizer
from train.optimizers.runs import KINDS, gradients, run, state_bytes, stepper

SIZES: dict[str, tuple[int, ...]] = {"large.weight": (70, 90), "small.weight": (6, 50), "bias": (11,)}
ROWS, LARGE = 70 + 6, 70 * 90
ALL = LARGE + 6 * 50 + 11
COUNTS = 3 * 4
CODES = 2 * LARGE + 2 * 4 * -(-LARGE // 256)
BYTES = {
    "adamw_torch": 8 * ALL + COUNTS,
    "paged_adamw_32bit": 8 * ALL + COUNTS,
    "adamw_8bit": CODES + 8 * (ALL - LARGE) + COUNTS,
    "paged_adamw_8bit": CODES + 8 * (ALL - LARGE) + COUNTS,
    "adafactor": 4 * (70 + 90 + 6 + 50 + 11) + COUNTS,
    "lion": 4 * ALL,
    "sgd": 0,
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_to_the_bit_from_a_file(kind: str, tmp_path: Path) -> None:
    whole, first, second = (stepper(SIZES, kind, weight_decay=0.1) for _ in range(3))
    run(whole, range(9))
    run(first, range(4))
    save_file(first.state_dict(), tmp_path / "optimizer.safetensors")
    with torch.no_grad():
        for name, parameter in second.parameters.items():
            parameter.copy_(first.parameters[name])
    second.load_state_dict(load_file(tmp_path / "optimizer.safetensors"))
    run(first, range(4, 5))  # what was loaded is a copy
    run(second, range(4, 9))
    assert all(torch.equal(whole.parameters[name], second.parameters[name]) for name in SIZES)
    ours, theirs = whole.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", KINDS)
def test_its_state_adds_up(kind: str) -> None:
    one = stepper(SIZES, kind)
    run(one, range(2))
    assert state_bytes(one) == BYTES[kind]


@pytest.mark.parametrize("way", ["auto", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_steps_without_numbers_and_keeps_as_much(kind: str, way: Any) -> None:
    kernels.choose(way)
    try:
        with FakeTensorMode():
            one = stepper(SIZES, kind, weight_decay=0.1)
            for _ in range(2):
                for parameter in one.parameters.values():
                    parameter.grad = torch.zeros_like(parameter)
                one.optimizer.step(1e-3)
            kept = sum(tensor.nbytes for state in one.optimizer.state.values() for tensor in state.values())
    finally:
        kernels.choose("auto")
    assert kept == BYTES[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_a_linear_map(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    wanted, x = torch.randn(70, 90, generator=generator), torch.randn(256, 90, generator=generator)
    one = Stepper({"w": torch.nn.Parameter(torch.zeros(70, 90))}, OptimOptions(optim=kind, max_grad_norm=0))
    losses = []
    for _ in range(80):
        one.clear()
        loss = (x @ (one.parameters["w"] - wanted).T).square().mean()
        losses.append(loss.item())
        one.backward(loss)
        one.step(10.0 if kind == "sgd" else 0.03)
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_says_what_it_reads(kind: str) -> None:
    """An option of the train section that a kind does not name changes nothing; one that it names changes something."""
    changed = {"weight_decay": 0.3, "adam_beta1": 0.5, "adam_beta2": 0.6, "adam_epsilon": 0.1}
    ends = {}
    for name, value in [("none", None), *changed.items()]:
        one = stepper(SIZES, kind, **({} if value is None else {name: value}))
        run(one, range(3))
        ends[name] = one.parameters["large.weight"].detach()
    reads = kind_class("lorikeet.train.optimizers", Optimizer, kind).reads
    assert {name for name in changed if not torch.equal(ends[name], ends["none"])} == reads


def test_other_names_mean_a_kind() -> None:
    for name, kind in other_names().items():
        assert name not in KINDS and kind in KINDS
        assert (
            OptimOptions(optim=name).optim == OptimOptions(optim={"kind": name}).optim == OptimOptions(optim=kind).optim
        )
    assert {"adamw_bnb_8bit", "adamw_torch_fused", "lion_32bit"} <= other_names().keys()


@pytest.mark.parametrize("kind", ["paged_adamw_8bit", "paged_adamw_32bit"])
def test_without_paged_memory_a_line_says_so(kind: str) -> None:
    optim = OptimOptions(optim=kind).optim
    line = optim.remark(torch.device("cpu"))
    assert kind in line and "cpu has no paged memory" in line and optim.computes(torch.device("cpu")) == "torch"
    plain = {"paged_adamw_8bit": "adamw_8bit", "paged_adamw_32bit": "adamw_torch"}[kind]
    ours, theirs = stepper(SIZES, kind), stepper(SIZES, plain)
    run(ours, range(3))
    run(theirs, range(3))
    assert all(torch.equal(ours.parameters[name], theirs.parameters[name]) for name in SIZES)


def saved(kind: str) -> dict[str, torch.Tensor]:
    one = stepper(SIZES, kind)
    run(one, range(1))
    return one.state_dict()


@pytest.mark.parametrize(
    ("ours", "theirs"), [("adamw_torch", "adamw_8bit"), ("adafactor", "adamw_torch"), ("sgd", "lion")]
)
def test_the_state_of_another_optimizer_is_refused(ours: str, theirs: str) -> None:
    with pytest.raises(CheckpointError, match=f"not what {ours} keeps") as error:
        stepper(SIZES, ours).load_state_dict(saved(theirs))
    assert "exp_avg" in str(error.value)


def test_a_state_that_lacks_a_tensor_or_has_another_shape_is_refused() -> None:
    whole = saved("adamw_8bit")
    fewer = {name: value for name, value in whole.items() if name != "large.weight/exp_avg_absmax"}
    for wrong in (fewer, whole | {"bias/exp_avg": torch.zeros(12)}, whole | {"bias/exp_avg": torch.zeros(11).half()}):
        with pytest.raises(CheckpointError, match="not what adamw_8bit keeps"):
            stepper(SIZES, "adamw_8bit").load_state_dict(wrong)


def test_another_min_8bit_size_is_another_state() -> None:
    with pytest.raises(CheckpointError, match=r"large\.weight"):
        stepper(SIZES, {"kind": "adamw_8bit", "min_8bit_size": 10_000}).load_state_dict(saved("adamw_8bit"))


@pytest.mark.parametrize(
    "optim",
    [
        "adamw_9bit",
        {"kind": "galore"},
        {"kind": "adamw_8bit", "min_8bit_size": 0},
        {"kind": "adamw_8bit", "block_size": 64},
        {"kind": "adafactor", "clip_threshold": 0},
        {"kind": "adafactor", "decay_rate": 0.8},
        {"kind": "sgd", "momentum": 0.9},
        {"clip_threshold": 1.0},
        7,
        "nowhere.py",
    ],
)
def test_what_is_no_optimizer_is_refused(optim: Any) -> None:
    with pytest.raises((ValidationError, RecipeError)):
        OptimOptions(optim=optim)


def test_a_file_of_one_s_own_is_an_optimizer(tmp_path: Path) -> None:
    file = tmp_path / "signs.py"
    file.write_text(
        "from lorikeet.train.optimizers._contract import Optimizer\n"
        "class Signs(Optimizer):\n"
        "    def begin(self, parameter):\n        return {}\n"
        "    def update(self, parameters, gradients, states, shared):\n"
        "        for parameter, gradient in zip(parameters, gradients):\n"
        "            parameter.sub_(gradient.sign() * shared.rate)\n"
    )
    one = stepper(SIZES, str(file))
    before = one.parameters["bias"].detach().clone()
    run(one, range(1), rate=0.5)
    torch.testing.assert_close(before - 0.5 * gradients(one, 0)["bias"].sign(), one.parameters["bias"].detach())


def test_plain_pytorch_in_a_kernel_s_place_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    optim, cuda = OptimOptions(optim="adamw_8bit").optim, torch.device("cuda")
    monkeypatch.setattr(_bitsandbytes, "installed", lambda: False)
    line = optim.remark(cuda)
    assert line is not None and "plain PyTorch" in line and "lorikeet-llm[bnb]" in line and "\n" not in line
    assert optim.remark(torch.device("cpu")) is None, "the compiled kernel, or a note of its own"
    monkeypatch.setattr(_bitsandbytes, "installed", lambda: True)
    assert optim.remark(cuda) is None


@pytest.mark.parametrize("kind", ["adamw_8bit", "paged_adamw_8bit"])
def test_where_no_tensor_is_large_enough_for_codes_a_line_says_so(kind: str) -> None:
    optim, cpu = OptimOptions(optim=kind).optim, torch.device("cpu")
    line = optim.remark(cpu, [torch.zeros(50, 60), torch.zeros(4095)])
    assert line is not None and "4,096" in line and "min_8bit_size" in line and "float32 states" in line
    assert "min_8bit_size" not in (optim.remark(cpu, [torch.zeros(50, 60), torch.zeros(4096)]) or "")
