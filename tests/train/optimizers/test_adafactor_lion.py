"""Adafactor is transformers', with its options; Lion is the paper's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from train.optimizers.runs import gradients, run, stepper

SIZES: dict[str, tuple[int, ...]] = {"matrix": (24, 40), "experts": (3, 8, 10), "vector": (17,)}


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("changed", [{}, {"scale_parameter": True}, {"clip_threshold": 0.3}, {"decay_rate": -0.5}])
def test_adafactor_is_that_of_transformers(changed: dict[str, Any], decay: float) -> None:
    transformers = pytest.importorskip("transformers")
    one = stepper(SIZES, {"kind": "adafactor", **changed}, weight_decay=decay)
    theirs = {name: torch.nn.Parameter(parameter.detach().clone()) for name, parameter in one.parameters.items()}
    plain = transformers.optimization.Adafactor(
        theirs.values(), lr=1.0, relative_step=False, weight_decay=decay, **{"scale_parameter": False} | changed
    )
    for step in range(20):
        rate = 0.001 * (step + 1)
        for name, gradient in gradients(one, step).items():
            theirs[name].grad = gradient
        plain.param_groups[0]["lr"] = rate
        plain.step()
        run(one, range(step, step + 1), rate)
        for name, parameter in one.parameters.items():
            torch.testing.assert_close(parameter, theirs[name], rtol=1e-6, atol=1e-6)


def test_a_matrix_that_is_not_contiguous_is_moved_alike() -> None:
    for kind in ("adafactor", {"kind": "adamw_8bit", "min_8bit_size": 1}, "lion"):
        ends = []
        for turned in (False, True):
            one = stepper({"w": (24, 40)}, kind)
            if turned:
                one.parameters["w"].data = one.parameters["w"].data.T.contiguous().T
            run(one, range(3))
            ends.append(one.parameters["w"].detach())
        assert (ends[0] - ends[1]).abs().quantile(0.99) < 1e-6


def test_lion_moves_by_the_sign() -> None:
    one = stepper(SIZES, "lion", adam_beta1=0.9, adam_beta2=0.99, weight_decay=0.5)
    wanted = {name: parameter.detach().clone() for name, parameter in one.parameters.items()}
    momentum = {name: torch.zeros_like(parameter) for name, parameter in wanted.items()}
    for step in range(6):
        run(one, range(step, step + 1), rate=0.01)
        for name, gradient in gradients(one, step).items():
            wanted[name] -= 0.01 * ((0.9 * momentum[name] + 0.1 * gradient).sign() + 0.5 * wanted[name])
            momentum[name] = 0.99 * momentum[name] + 0.01 * gradient
            torch.testing.assert_close(one.parameters[name].detach(), wanted[name], rtol=1e-5, atol=1e-6)
