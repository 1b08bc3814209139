"""Optimizer and schedule. The learning rate is a pure function of the step, so it needs no saved state.

Schedules are transformers' (`optimization.py`): the first of W warm-up steps has rate 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lorikeet.base.errors import CheckpointError
from lorikeet.base.options import Options

Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]


class OptimOptions(Options):
    """The part of the recipe's `train` section that decides an update."""

    learning_rate: float = Field(2e-4, gt=0, description="The peak learning rate.")
    lr_scheduler_type: Schedule = Field("cosine", description="linear and cosine fall to zero at the last step.")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="Share of the steps in which the rate rises from zero.")
    warmup_steps: int | None = Field(None, ge=0, description="The same as a number of steps; instead of warmup_ratio.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are scaled down to this norm; 0 for never.")
    optim: Literal["adamw_torch", "sgd"] = Field("adamw_torch", description="AdamW (fused kernel) or plain SGD.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the mean of gradients.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's decay of the mean of squared gradients.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's term against division by zero.")


def warmup(options: OptimOptions, steps: int) -> int:
    """Number of warm-up steps in a run of `steps`."""
    if options.warmup_steps is not None:
        return options.warmup_steps
    return math.ceil(steps * options.warmup_ratio)


def learning_rate(options: OptimOptions, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) in a run of `steps`."""
    rising = warmup(options, steps)
    kind = options.lr_scheduler_type
    if kind != "constant" and step < rising:
        return options.learning_rate * step / max(1, rising)
    if kind in ("constant", "constant_with_warmup"):
        return options.learning_rate
    if kind == "linear":
        return options.learning_rate * max(0.0, (steps - step) / max(1, steps - rising))
    progress = (step - rising) / max(1, steps - rising)
    return options.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


class Stepper:
    """One device's backward and update over named float32 parameters."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], options: OptimOptions):
        self.parameters, self.options = dict(parameters), options
        values, rate, decay = list(self.parameters.values()), options.learning_rate, options.weight_decay
        self.optimizer: torch.optim.Optimizer
        if options.optim == "sgd":
            self.optimizer = torch.optim.SGD(values, lr=rate, weight_decay=decay)
        else:
            betas = (options.adam_beta1, options.adam_beta2)
            self.optimizer = torch.optim.AdamW(
                values, lr=rate, betas=betas, eps=options.adam_epsilon, weight_decay=decay, fused=True
            )

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to what the parameters already hold."""
        if loss.requires_grad:
            loss.backward()

    def step(self, rate: float) -> float:
        """Clip, update with learning rate `rate`, clear; returns the gradients' norm before clipping."""
        limit = self.options.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit).item()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return norm

    def clear(self) -> None:
        """Forget the gradients; called before each step, so that they can be looked at after one."""
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """The optimizer's tensors by `parameter name/state name`."""
        state = self.optimizer.state
        return {
            f"{name}/{key}": value.detach().cpu().contiguous()
            for name, parameter in self.parameters.items()
            for key, value in state.get(parameter, {}).items()
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`. Raises CheckpointError for tensors of other parameters."""
        for name, value in tensors.items():
            parameter_name, _, key = name.rpartition("/")
            parameter = self.parameters.get(parameter_name)
            if parameter is None:
                raise CheckpointError("the optimizer state belongs to other parameters", given=name)
            # a copy, or two optimizers would write to one state; the fused kernel wants `step` on the device too
            self.optimizer.state[parameter][key] = value.to(parameter.device, copy=True)
