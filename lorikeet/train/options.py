"""The recipe's `train` section: how it learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from lorikeet.train.best import BestOptions
from lorikeet.train.finite import FiniteOptions
from lorikeet.train.noise import NoiseOptions
from lorikeet.train.optim import OptimOptions
from lorikeet.train.rehearsal import RehearsalOptions
from lorikeet.train.tracking import TrackingOptions

MOST_EXAMPLES = 1_000_000  # of a step, which is planned as a whole
_WHOLE = TypeAdapter(int)


class TrainOptions(OptimOptions, NoiseOptions, FiniteOptions, BestOptions, RehearsalOptions, TrackingOptions):
    """The recipe's `train` section."""

    num_train_epochs: float = Field(1.0, gt=0, le=1e6, description="Passes over the training data.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many steps, whatever the epochs.")
    examples_per_step: int = Field(
        16, ge=1, le=MOST_EXAMPLES, description="Conversations per optimizer step, over all devices."
    )
    per_device_train_batch_size: int | None = Field(
        None, ge=1, description="With gradient_accumulation_steps: another way to write examples_per_step, the product."
    )
    gradient_accumulation_steps: int | None = Field(None, ge=1, description="See per_device_train_batch_size.")
    row_tokens: int | None = Field(
        None,
        ge=16,
        le=10_000_000,
        description="Most tokens of one packed micro-batch; by default from the machine's memory.",
    )
    gradient_checkpointing: bool | int = Field(
        False,
        ge=0,
        description="Compute layers twice to keep less memory: true for all, a number for the first so many.",
    )
    logging_steps: int = Field(1, ge=1, description="Write metrics every so many steps.")
    eval_steps: int | None = Field(None, ge=1, description="Validate every so many steps; always at the end.")
    save_steps: int | None = Field(None, ge=1, description="Write a checkpoint every so many steps; always at the end.")
    save_total_limit: int = Field(2, ge=1, description="Keep this many checkpoints.")
    seed: int = Field(0, ge=0, description="Decides initialisation, order and dropout.")

    @model_validator(mode="before")
    @classmethod
    def _product(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        size, accumulation = values.get("per_device_train_batch_size"), values.get("gradient_accumulation_steps")
        if size is None and accumulation is None:
            return values
        try:
            size, accumulation = (_WHOLE.validate_python(one or 1) for one in (size, accumulation))
            said = _WHOLE.validate_python(values.get("examples_per_step", size * accumulation))
        except ValidationError:
            return values  # the fields say what is wrong with them
        product = size * accumulation
        if product > MOST_EXAMPLES and min(size, accumulation) > 0:
            raise ValueError(
                f"per_device_train_batch_size x gradient_accumulation_steps is {product}, above {MOST_EXAMPLES}"
            )
        if said != product:
            raise ValueError(
                f"examples_per_step ({values['examples_per_step']}) and per_device_train_batch_size x "
                f"gradient_accumulation_steps ({product}) say different things"
            )
        return values | {"examples_per_step": product}

    @model_validator(mode="after")
    def _one_warmup(self) -> TrainOptions:
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("warmup_steps is given, so warmup_ratio would have no effect")
        schedule = self.lr_scheduler_type
        if not schedule.warms_up and (self.warmup_steps or self.warmup_ratio):
            raise ValueError(f"{schedule.kind} has no warm-up; lr_scheduler_type: constant_with_warmup has one")
        schedule.check(self.learning_rate)
        return self


def idle(train: TrainOptions) -> Sequence[tuple[set[str], bool, str, str]]:
    """What of it would do nothing, by the others: (options, whether so, why, what to write)."""
    threshold, unset = {"train.early_stopping_threshold"}, train.early_stopping_patience is None
    left_out = "skip" in (train.on_nonfinite, train.on_loss_spike)
    schedule = train.lr_scheduler_type.idle(warmup=bool(train.warmup_steps or train.warmup_ratio))
    return (
        *(({f"train.lr_scheduler_type.{name}"}, True, why, remedy) for name, (why, remedy) in schedule.items()),
        (threshold, unset, "train.early_stopping_patience is not set", "train.early_stopping_patience=3"),
        ({"train.max_skipped_steps"}, not left_out, "no step is left out", "train.on_nonfinite=skip"),
    )
