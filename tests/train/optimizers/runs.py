"""Steps of an optimizer over given gradients, for the tests beside this file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lorikeet.base.kinds import kinds
from lorikeet.train.optim import OptimOptions, Stepper

KINDS = kinds("lorikeet.train.optimizers")


def stepper(sizes: dict[str, tuple[int, ...]], optim: Any, *, seed: int = 0, **options: Any) -> Stepper:
    """Parameters of these sizes, the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: torch.nn.Parameter(torch.randn(size, generator=generator)) for name, size in sizes.items()}
    return Stepper(parameters, OptimOptions(**{"optim": optim, "max_grad_norm": 0} | options))


def gradients(of: Stepper, step: int) -> dict[str, Tensor]:
    """Of a step, with magnitudes over several decades; the same for every stepper of these sizes."""
    generator = torch.Generator().manual_seed(1000 + step)
    found = {}
    for name, parameter in of.parameters.items():
        size = torch.rand(parameter.shape, generator=generator) ** 4
        found[name] = torch.randn(parameter.shape, generator=generator) * size
    return found


def run(one: Stepper, steps: range, rate: float = 1e-2) -> None:
    for step in steps:
        one.clear()
        for name, gradient in gradients(one, step).items():
            one.parameters[name].grad = gradient
        one.step(rate)


def state_bytes(one: Stepper) -> int:
    return sum(tensor.nbytes for tensor in one.state_dict().values())
