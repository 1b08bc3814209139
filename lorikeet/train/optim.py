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


class _Update:
    """What torch.optim's SGD and fused AdamW compute, by torch's own kernels, without those classes: building one
    imports torch's compiler, 1.6 seconds and 40 MiB that training has no use for."""

    def __init__(self, parameters: list[nn.Parameter], options: OptimOptions):
        self.parameters, self.options = parameters, options
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update the parameters that have a gradient."""
        moved = [parameter for parameter in self.parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        decay = self.options.weight_decay
        if self.options.optim == "sgd":
            for parameter, gradient in zip(moved, gradients):
                parameter.add_(gradient.add(parameter, alpha=decay) if decay else gradient, alpha=-rate)
        elif moved:
            self._adamw(moved, gradients, rate)

    def _adamw(self, moved: list[nn.Parameter], gradients: list[Tensor], rate: float) -> None:
        options = self.options
        for parameter in moved:
            if parameter not in self.state:
                means = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {"step": torch.zeros((), device=parameter.device), **means}
        states = [self.state[parameter] for parameter in moved]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        for dtype, device in dict.fromkeys((parameter.dtype, parameter.device) for parameter in moved):
            those = [i for i, one in enumerate(moved) if (one.dtype, one.device) == (dtype, device)]
            torch._fused_adamw_(
                [moved[i] for i in those],
                [gradients[i] for i in those],
                [states[i]["exp_avg"] for i in those],
                [states[i]["exp_avg_sq"] for i in those],
                [],
                [steps[i] for i in those],
                lr=rate,
                beta1=options.adam_beta1,
                beta2=options.adam_beta2,
                weight_decay=options.weight_decay,
                eps=options.adam_epsilon,
                amsgrad=False,
                maximize=False,
            )


class Stepper:
    """One device's backward and update over named float32 parameters."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], options: OptimOptions):
        self.parameters, self.options = dict(parameters), options
        self.optimizer = _Update(list(self.parameters.values()), options)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to what the parameters already hold."""
        if loss.requires_grad:
            loss.backward()

    def step(self, rate: float) -> float:
        """Clip, update with learning rate `rate`, clear; returns the gradients' norm before clipping."""
        limit = self.options.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit).item()
        self.optimizer.step(rate)
        return norm

    def clear(self) -> None:
        """Forget the gradients; called before each step, so that they can be looked at after one."""
        for parameter in self.parameters.values():
            parameter.grad = None

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
            state = self.optimizer.state.setdefault(parameter, {})
            state[key] = value.to(parameter.device, copy=True)
