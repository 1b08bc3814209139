"""Which evaluation was the best one, and when no better one is waited for any more.

What was best and how long ago stands in the run's progress, so it is in every checkpoint: a run that goes on remembers
it, and stops where it would have stopped. Names are transformers'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from lorikeet.base.errors import RecipeError, nearest
from lorikeet.base.log import note
from lorikeet.base.option_types import Amount
from lorikeet.base.options import Options
from lorikeet.train.evaluate import MEASURED, SCORES, EvaluateOptions

if TYPE_CHECKING:
    from lorikeet.train.run import Progress

LESS_IS_BETTER = ("loss", "perplexity")


class BestOptions(Options):
    """The part of the recipe's `train` section that compares evaluations."""

    load_best_model_at_end: bool = Field(
        False,
        description="The run's adapter is the one that evaluated best, not the last. Each best one is checkpointed.",
    )
    metric_for_best_model: str = Field(
        "loss",
        description="What is compared: loss, perplexity, token_accuracy, or what evaluate.metrics brings: exact_match, "
        "ended, rouge1, rouge2, rougeL, chrf.",
    )
    greater_is_better: bool | None = Field(
        None, description="Whether more of it is better; null: of everything but loss and perplexity."
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="End the run when so many evaluations in a row were no better than the best one."
    )
    early_stopping_threshold: Amount = Field(
        0.0, description="An evaluation has to be better by more than this for patience to begin anew."
    )

    @field_validator("metric_for_best_model")
    @classmethod
    def _bare(cls, value: str) -> str:
        return value.removeprefix("eval_")  # as transformers writes it


def decides_by_evaluation(options: BestOptions) -> bool:
    """Whether what evaluations find changes what comes out of the run."""
    return options.load_best_model_at_end or options.early_stopping_patience is not None


def decides_by_replies(options: BestOptions) -> bool:
    """The same of what they find in replies."""
    return decides_by_evaluation(options) and options.metric_for_best_model not in MEASURED


def judge(options: BestOptions, done: Progress, measured: Mapping[str, Any]) -> bool:
    """Take an evaluation into account. Returns whether patience is at its end.

    What is not a number is never better. Ties are not better: the earlier one stays."""
    name = options.metric_for_best_model
    more = name not in LESS_IS_BETTER if options.greater_is_better is None else options.greater_is_better
    value = float(measured[name])
    best = None if done.best is None else float(done.best["value"])
    gain = math.inf if best is None else (value - best if more else best - value)
    if math.isnan(value):
        gain = -math.inf
    done.waited = 0 if gain > options.early_stopping_threshold else done.waited + 1
    if gain > 0:
        done.best = {"step": done.step, "metric": name, "value": value, "measured": dict(measured)}
    return options.early_stopping_patience is not None and done.waited >= options.early_stopping_patience


def check_reached(options: BestOptions, eval_steps: int | None, steps: int) -> None:
    """Raise RecipeError where a run of so many steps has no evaluation before its end, and one of `options` waits for
    some; say so where there are fewer than patience needs, or none at all of those that `eval_steps` asks for."""
    patience, there = options.early_stopping_patience, (steps - 1) // eval_steps if eval_steps else 0
    waiting = ["load_best_model_at_end"] if options.load_best_model_at_end else []
    waiting += ["early_stopping_patience"] if patience is not None else []
    if waiting and not there:
        raise RecipeError(
            f"train.{waiting[0]}: has no effect in this run, because nothing is evaluated before its end",
            given=f"train.eval_steps={eval_steps}, and the run has {steps} steps",
            allowed=f"train.eval_steps below {steps}" if steps > 1 else None,
            try_=f"train.eval_steps={max(1, steps // 2)}, or leave it out"
            if steps > 1
            else "more steps, or leave it out",
        )
    if eval_steps is not None and eval_steps > steps:
        note(f"train.eval_steps={eval_steps} is beyond the last step, {steps}: the run is evaluated at its end only")
    # the first one is the best so far, whatever it finds
    if patience is not None and there < patience + 1:
        note(
            f"train.early_stopping_patience={patience} cannot end this run: it needs {patience + 1} evaluations before "
            f"the last step, and there are {there}"
        )


def check_metric(options: BestOptions, evaluate: EvaluateOptions) -> None:
    """Raise RecipeError for a metric that no evaluation of this run measures."""
    name = options.metric_for_best_model
    measured = [*MEASURED, *(score for metric in evaluate.metrics for score in SCORES[metric])]
    if name in measured:
        return
    brings = next((metric for metric, scores in SCORES.items() if name in (metric, *scores)), None)
    raise RecipeError(
        "train.metric_for_best_model: no evaluation of this run measures it",
        given=name,
        allowed=" ".join(measured),
        try_=f"evaluate.metrics='[{brings}]'" if brings and name in SCORES[brings] else nearest(name, measured),
    )
