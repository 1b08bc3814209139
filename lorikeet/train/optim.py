"""The learning rate (by one of schedules/), and the stepper that runs an optimizer (one of optimizers/).

The learning rate is a pure function of the step, so it needs no saved state.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from lorikeet.base.errors import CheckpointError, RecipeError
from lorikeet.base.kinds import kind_class, kind_field, kinds
from lorikeet.base.option_types import MOST_RATE, Amount
from lorikeet.ops.weight_gradient import straight
from lorikeet.train.in_backward import InBackward
from lorikeet.train.optimizers._contract import Optimizer, Shared, State
from lorikeet.train.optimizers.adamw_torch import AdamWTorch
from lorikeet.train.rates import RateOptions, factors
from lorikeet.train.schedules._contract import Moment, Schedule
from lorikeet.train.schedules.cosine import Cosine


class OptimOptions(RateOptions):
    """The part of the recipe's `train` section that decides an update."""

    learning_rate: float = Field(2e-4, gt=0, le=MOST_RATE, description="The peak learning rate.")
    lr_scheduler_type: kind_field("lorikeet.train.schedules", Schedule) = Field(  # type: ignore[valid-type]
        Cosine(), description="What the learning rate does behind the warm-up."
    )
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="Share of the steps in which the rate rises from zero.")
    warmup_steps: int | None = Field(None, ge=0, description="The same as a number of steps; instead of warmup_ratio.")
    max_grad_norm: float = Field(1.0, ge=0, le=1e30, description="Gradients are scaled down to this norm; 0 for never.")
    optim: kind_field("lorikeet.train.optimizers", Optimizer) = Field(  # type: ignore[valid-type]
        AdamWTorch(), description="What turns gradients into updates."
    )
    optimizer_in_backward: bool = Field(
        False,
        description="Move each tensor as soon as its gradient is complete and let that go, so that gradients take no "
        "room (all of it where a step is one row). Needs max_grad_norm: 0, for clipping needs all gradients first.",
    )
    weight_decay: Amount = Field(0.0, description="Decoupled weight decay.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the mean of gradients.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's decay of the mean of squared gradients.")
    # a much smaller one is zero in float32, and numbers whose gradient is zero would be divided by it
    adam_epsilon: float = Field(1e-8, ge=1e-30, le=1, description="AdamW's term against division by zero.")

    @model_validator(mode="after")
    def _no_clipping_in_backward(self) -> Self:
        if self.optimizer_in_backward and self.max_grad_norm:
            raise ValueError(
                f"optimizer_in_backward moves tensors before the norm of all gradients is known, so max_grad_norm "
                f"({self.max_grad_norm:g}) has to be 0"
            )
        return self

    @model_validator(mode="after")
    def _decay_leaves_something(self) -> Self:
        if self.weight_decay * self.learning_rate > 1:
            raise ValueError(
                f"weight_decay ({self.weight_decay:g}) times learning_rate ({self.learning_rate:g}) is above 1: every "
                "step would take more off a weight than it has"
            )
        return self

    @field_validator("optim", mode="before")
    @classmethod
    def _other_names(cls, value: Any) -> Any:
        """A kind's further names mean the kind."""
        name = value.get("kind") if isinstance(value, dict) else value
        if not isinstance(name, str) or name not in (also := other_names()):
            return value
        return {**value, "kind": also[name]} if isinstance(value, dict) else also[name]


def other_names() -> dict[str, str]:
    """The further names that optimizers are known by, and the kind that each means."""
    package = "lorikeet.train.optimizers"
    return {also: name for name in kinds(package) for also in kind_class(package, Optimizer, name).also}


def warmup(options: OptimOptions, steps: int) -> int:
    """Number of warm-up steps in a run of `steps`."""
    if options.warmup_steps is not None:
        return options.warmup_steps
    return math.ceil(steps * options.warmup_ratio)


def learning_rate(options: OptimOptions, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) in a run of `steps`."""
    schedule: Schedule = options.lr_scheduler_type
    return schedule.rate(Moment(step, steps, warmup(options, steps), options.learning_rate))


def check_schedule(options: OptimOptions, steps: int) -> None:
    """Raise RecipeError for a schedule that does not fit a run of `steps`."""
    options.lr_scheduler_type.check_length(Moment(0, steps, warmup(options, steps), options.learning_rate))


def check_dtype(options: OptimOptions, dtype: torch.dtype) -> None:
    """Raise RecipeError for an option that training in `dtype` cannot do."""
    if dtype == torch.float16 and options.optimizer_in_backward:
        raise RecipeError(
            "train.optimizer_in_backward: float16 has to know all gradients before one is used",
            given="model.dtype is float16",
            try_="model.dtype=float32, or train.optimizer_in_backward=false",
        )


class _Update:
    """The chosen kind, and what it keeps for each parameter that has had a gradient."""

    def __init__(self, parameters: list[nn.Parameter], shares: list[float], options: OptimOptions):
        self.parameters, self.options = parameters, options
        self.shares = dict(zip(parameters, shares))  # of the learning rate
        self.groups: dict[float, list[nn.Parameter]] = defaultdict(list)
        for parameter, share in self.shares.items():
            self.groups[share].append(parameter)
        self.state: dict[nn.Parameter, State] = {}

    @torch.no_grad()
    def step(self, rate: float, but: Collection[nn.Parameter] = ()) -> None:
        """Update the parameters that have a gradient, `but` those."""
        for share, parameters in self.groups.items():
            self._move([parameter for parameter in parameters if parameter not in but], rate * share)

    @torch.no_grad()
    def one(self, parameter: nn.Parameter, rate: float) -> None:
        """Update this parameter alone."""
        self._move([parameter], rate * self.shares[parameter])

    def _move(self, parameters: list[nn.Parameter], rate: float) -> None:
        moved = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        kind, options = self.options.optim, self.options
        for parameter in moved:
            if parameter not in self.state:
                self.state[parameter] = kind.begin(parameter)
        told = {name: getattr(options, name) for name in Shared._fields[1:]}
        kind.update(moved, gradients, [self.state[parameter] for parameter in moved], Shared(rate, **told))


class Stepper:
    """One device's backward and update over named float32 parameters. `shares` are an adapter's own factors on the
    learning rate, by name; those of the options come on top."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], options: OptimOptions, shares: Mapping[str, float] = {}):
        self.parameters, self.options = dict(parameters), options
        found = factors(options, self.parameters, shares)
        self.optimizer = _Update(list(self.parameters.values()), list(found.values()), options)
        self.scale = 1.0  # of the loss, and of gradients until `step`
        self.not_finite: str | None = None  # which gradient was not, where a tensor had moved in the pass by then
        self.early: InBackward | None = None
        if options.optimizer_in_backward:
            self.early = InBackward(list(self.parameters.values()), self.optimizer.one)

    @property
    def begun(self) -> bool:
        """Whether a tensor has moved in this step already."""
        return self.early is not None and bool(self.early.moved)

    def backward(self, loss: Tensor, *, last_at: float | None = None) -> None:
        """Add the gradients of `loss`, times `scale`, to what the parameters already hold. `last_at`: it is the step's
        last, and this its learning rate, so that a gradient is complete as soon as it is made."""
        if not loss.requires_grad:
            return
        loss = loss if self.scale == 1.0 else loss * self.scale
        if self.early is None or last_at is None:
            with straight("all"):
                loss.backward()
        else:
            with self.early.at(last_at), straight("tables"):
                loss.backward()

    @contextmanager
    def still(self) -> Iterator[None]:
        """While the block runs, no tensor moves inside a backward pass."""
        with nullcontext() if self.early is None else self.early.still():
            yield

    def step(self, rate: float) -> float:
        """Clip, update with learning rate `rate`; returns the gradients' norm before clipping. Where that is not
        finite nothing moves, unless it moved in the pass."""
        moved = {} if self.early is None else self.early.moved
        waiting = [parameter for parameter in self.parameters.values() if parameter not in moved]
        if self.scale != 1.0:
            for parameter in waiting:
                if parameter.grad is not None:
                    parameter.grad.div_(self.scale)
        norm = torch.nn.utils.clip_grad_norm_(waiting, self.options.max_grad_norm or math.inf)
        if moved:
            norm = torch.linalg.vector_norm(torch.stack([norm, *moved.values()]))
        found = norm.item()
        if math.isfinite(found):
            self.optimizer.step(rate, but=moved)
        else:
            names = (name for name, one in self.parameters.items() if one in moved and not moved[one].isfinite())
            self.not_finite = max(names, default=None)
        moved.clear()
        return found

    def clear(self) -> None:
        """Forget the gradients; called before each step, so that they can be looked at after one."""
        if self.early is not None:
            self.early.moved.clear()
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
        """The inverse of `state_dict`. Raises CheckpointError for tensors of other parameters or another optimizer."""
        kind, found = self.options.optim, defaultdict[str, State](dict)
        for name, value in tensors.items():
            parameter_name, _, key = name.rpartition("/")
            if parameter_name not in self.parameters:
                raise CheckpointError("the optimizer state belongs to other parameters", given=name)
            found[parameter_name][key] = value
        for name, state in found.items():
            parameter = self.parameters[name]
            given = {key: (value.dtype, value.shape) for key, value in state.items()}
            kept = {key: (value.dtype, value.shape) for key, value in kind.begin(parameter.detach().to("meta")).items()}
            if given != kept:
                raise CheckpointError(
                    f"the optimizer state of {name} is not what {kind.kind} keeps",
                    given=_shown(given),
                    allowed=_shown(kept),
                )
            self.optimizer.state[parameter] = {key: kind.place(key, value, parameter) for key, value in state.items()}


def _shown(state: Mapping[str, tuple[torch.dtype, torch.Size]]) -> str:
    """`exp_avg float32 [64, 8], step float32 []`."""
    names = sorted(state)
    return ", ".join(f"{name} {str(state[name][0]).removeprefix('torch.')} {list(state[name][1])}" for name in names)
