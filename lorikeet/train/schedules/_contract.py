"""How the learning rate moves through a run: a pure function of the step, so resuming needs no saved state.

A kind is two curves, `rising` in the warm-up and `falling` behind it, as shares of train.learning_rate. Formulas and
names are transformers' (`optimization.py`): of W warm-up steps the first has rate 0.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from lorikeet.base.errors import RecipeError
from lorikeet.base.options import Options


class Moment(NamedTuple):
    """Step `step` (from 0) of a run of `steps`, of which the first `warmup` warm up to the rate `peak`."""

    step: int
    steps: int
    warmup: int
    peak: float

    @property
    def warmed(self) -> float:
        """How far the warm-up is, from 0 to 1."""
        return self.step / max(1, self.warmup)

    @property
    def progress(self) -> float:
        """How far the run is behind its warm-up, from 0 to 1."""
        return (self.step - self.warmup) / max(1, self.steps - self.warmup)


class Schedule(Options):
    """Base of the schedules; fields are `train.lr_scheduler_type`'s options."""

    warms_up: ClassVar[bool] = True  # whether train.warmup_steps and train.warmup_ratio mean something
    of_warmup: ClassVar[tuple[str, ...]] = ()  # options that only the warm-up reads

    def rising(self, at: Moment) -> float:
        """The share of the peak at a step of the warm-up."""
        return at.warmed

    def falling(self, at: Moment) -> float:
        """The share of the peak at a step behind the warm-up."""
        raise NotImplementedError

    def rate(self, at: Moment) -> float:
        """The learning rate."""
        return at.peak * (self.rising(at) if self.warms_up and at.step < at.warmup else self.falling(at))

    def idle(self, *, warmup: bool) -> dict[str, tuple[str, str]]:
        """Options that mean nothing where there is no `warmup`, or beside the others: by name, why and what to write
        instead."""
        return {} if warmup else dict.fromkeys(self.of_warmup, ("there is no warm-up", "train.warmup_ratio=0.03"))

    def check(self, peak: float) -> None:
        """Raise ValueError where the kind's own rates do not fit train.learning_rate."""

    def check_length(self, start: Moment) -> None:
        """Raise RecipeError where the kind's own phases do not fit the run that begins at `start`."""


def refuse(option: str, what: str, given: object, allowed: str, try_: str) -> RecipeError:
    """The error for an option of a schedule that does not fit the run."""
    return RecipeError(f"train.lr_scheduler_type.{option}: {what}", given=given, allowed=allowed, try_=try_)
