"""AdamW is torch's, clipping is by the norm of all gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorikeet.train.optim import OptimOptions, Stepper, warmup


@pytest.mark.parametrize(("steps", "ratio", "expected"), [(100, 0.03, 3), (101, 0.03, 4), (10, 0.0, 0), (7, 0.5, 4)])
def test_the_warm_up_ratio_is_rounded_up_as_in_transformers(steps: int, ratio: float, expected: int) -> None:
    assert warmup(OptimOptions(warmup_ratio=ratio), steps) == expected
    assert warmup(OptimOptions(warmup_ratio=0.0, warmup_steps=2), steps) == 2


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_adamw_equals_torch_s_plain_one(decay: float, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, 3, generator=generator, dtype=dtype)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    options = OptimOptions(weight_decay=decay, max_grad_norm=0, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6)
    stepper = Stepper({"a": ours}, options)
    plain = torch.optim.AdamW(
        [theirs], lr=1.0, betas=(0.8, 0.95), eps=1e-6, weight_decay=decay, fused=False, foreach=False
    )
    for step in range(12):
        rate = 0.01 * step
        plain.param_groups[0]["lr"] = rate
        gradient = torch.randn(5, 3, generator=generator, dtype=dtype)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        stepper.step(rate)
        plain.step()
        torch.testing.assert_close(ours.data, theirs.data, rtol=tolerance, atol=tolerance)
    assert (ours.data - start).abs().max() > 0.01


@pytest.mark.parametrize(("limit", "expected"), [(0.0, 5.0), (1.0, 1.0), (10.0, 5.0)])
def test_gradients_are_clipped_by_their_common_norm(limit: float, expected: float) -> None:
    parameters = {"a": torch.nn.Parameter(torch.zeros(1)), "b": torch.nn.Parameter(torch.zeros(1))}
    parameters["a"].grad, parameters["b"].grad = torch.tensor([3.0]), torch.tensor([4.0])
    norm = Stepper(parameters, OptimOptions(optim="sgd", max_grad_norm=limit)).step(1.0)
    assert norm == pytest.approx(5.0)
    moved = torch.cat([parameters["a"].data, parameters["b"].data]).norm().item()
    assert moved == pytest.approx(expected, rel=1e-5)


def test_state_goes_out_and_comes_back_to_where_the_parameters_are() -> None:
    first, second = ({"a.weight": torch.nn.Parameter(torch.ones(3))} for _ in range(2))
    stepper = Stepper(first, OptimOptions())
    for size in (1.0, 2.0):
        first["a.weight"].grad = torch.full((3,), size)
        stepper.step(0.1)
    state = stepper.state_dict()
    assert set(state) == {"a.weight/step", "a.weight/exp_avg", "a.weight/exp_avg_sq"} and state["a.weight/step"] == 2
    again = Stepper(second, OptimOptions())
    again.load_state_dict(state)
    second["a.weight"].data.copy_(first["a.weight"].data)
    for parameters, one in ((first, stepper), (second, again)):
        parameters["a.weight"].grad = torch.full((3,), -1.0)
        one.step(0.1)
    assert torch.equal(first["a.weight"], second["a.weight"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_saved_state_goes_on_on_a_cuda_device() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))
    stepper = Stepper({"a": parameter}, OptimOptions())
    parameter.grad = torch.ones_like(parameter)
    stepper.step(0.1)
    again = Stepper({"a": parameter}, OptimOptions())
    again.load_state_dict(stepper.state_dict())
    again.step(0.1)
    assert parameter.isfinite().all()


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_updates_equal_the_optimizers_of_torch_to_the_bit(optim: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    starts = [torch.randn(7, 5, generator=generator), torch.randn(3, generator=generator)]
    ours, theirs = ([torch.nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    stepper = Stepper({"a": ours[0], "b": ours[1]}, OptimOptions(optim=optim, weight_decay=0.1, max_grad_norm=0))
    kind: Any = torch.optim.SGD if optim == "sgd" else torch.optim.AdamW
    plain = kind(theirs, lr=1.0, weight_decay=0.1, fused=optim != "sgd")
    for step in range(6):
        for one, other in zip(ours, theirs):
            one.grad = other.grad = torch.randn(one.shape, generator=generator)
        if step < 2:  # one that was not reached keeps its own count
            ours[1].grad = theirs[1].grad = None
        plain.param_groups[0]["lr"] = 0.01 * step
        stepper.step(0.01 * step)
        plain.step()
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs))
        stepper.clear()
        assert all(one.grad is None for one in ours)
