"""What the loop works on, what it counts, and what it brings back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lorikeet.base.nouns import Batch, Example
from lorikeet.kernels.build import compile_seconds
from lorikeet.models.causal_lm import CausalLM
from lorikeet.train.chain import Link
from lorikeet.train.evaluate import EvalResult
from lorikeet.train.limits import Budget
from lorikeet.train.metrics import Metrics
from lorikeet.train.rehearsal import Costliest
from lorikeet.train.step import StepResult


@dataclass
class Run:
    """What the loop works on. `batches(step)` is the step's micro-batches, a pure function of the step."""

    folder: Path
    model: CausalLM
    parameters: Mapping[str, nn.Parameter]
    batches: Callable[[int], Sequence[Batch]]
    steps: int
    save_adapter: Callable[[Path], None]
    validation: Sequence[Batch] | None = None
    evaluate_before: bool = True
    identity: dict[str, Any] = field(default_factory=dict)
    examples: Callable[[int], Sequence[Example]] | None = None  # of a step, for their origins
    costliest: Callable[[], Costliest] | None = None  # the row that takes most memory
    budget: Budget = field(default_factory=Budget)
    metrics: Metrics | None = None  # by default metrics.jsonl alone
    stop_after: int | None = None  # save and stop behind this step, as if asked to
    again: Mapping[int, Link] = field(default_factory=dict)  # of steps that are done again: what they came to
    differed: dict[str, Any] | None = None  # the first of such steps that came to something else in an earlier start
    score: Callable[[], Mapping[str, float]] | None = None  # what is measured on replies, at each evaluation
    sample: Callable[[int], None] | None = None  # told of each finished step: it may answer the report's prompts


@dataclass
class Progress:
    """What has been done so far; saved with each checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # in training steps, without evaluation and saving
    loss_sum: float = 0.0
    eval_before: float | None = None
    skipped: int = 0  # steps that moved nothing, because a number was not finite or the loss jumped
    skipped_in_a_row: int = 0
    split_from: int | None = None  # a row of so many tokens did not fit into memory
    loss_scale: dict[str, Any] | None = None  # float16's
    recent_losses: list[float] = field(default_factory=list)
    chain: str = ""  # the last link's hash
    best: dict[str, Any] | None = None  # the best evaluation: step, metric, value, measured
    waited: int = 0  # evaluations since one was better
    ended: str | None = None  # why the run is over before its last step

    @property
    def best_step(self) -> int | None:
        """After which step the best evaluation was."""
        return None if self.best is None else self.best["step"]

    def add(self, result: StepResult, seconds: float) -> None:
        """One more step."""
        self.step += 1
        self.seconds += seconds
        if result.moved:
            self.tokens += result.tokens
            self.loss_sum += result.loss


@dataclass(frozen=True)
class Outcome:
    done: Progress
    evaluation: EvalResult | None
    peak_rss_bytes: int
    peak_device_bytes: int | None
    differs: dict[str, Any] | None = None  # the first step that was done again and came to something else


def summarise(outcome: Outcome, run: Run, *, wall_seconds: float) -> dict[str, Any]:
    """summary.json: what the run did, in numbers. Training seconds are those of the steps alone."""
    done, evaluation = outcome.done, outcome.evaluation
    found: dict[str, Any] = {
        "train_loss": done.loss_sum / (done.step - done.skipped) if done.step > done.skipped else None,
        "skipped_steps": done.skipped or None,
        "eval_loss": evaluation.loss if evaluation else None,
        "eval_loss_before": done.eval_before,
        "perplexity": evaluation.perplexity if evaluation else None,
        "token_accuracy": evaluation.token_accuracy if evaluation else None,
        **(evaluation.scores if evaluation else {}),
        **({f"best_{done.best['metric']}": done.best["value"], "best_step": done.best_step} if done.best else {}),
        "ended_early": done.ended,
        "steps": done.step,
        "chain": done.chain,
        "differs": outcome.differs,
        "tokens": done.tokens,
        "seconds": done.seconds,
        "tokens_per_second": done.tokens / done.seconds,
        "compile_seconds": compile_seconds(),
        "wall_seconds": wall_seconds,
        "peak_rss_bytes": outcome.peak_rss_bytes,
        "peak_device_bytes": outcome.peak_device_bytes,
        "trainable_parameters": sum(parameter.numel() for parameter in run.parameters.values()),
        "parameters": sum(math.prod(slot.shape) for slot in run.model.slots()),
    }
    return {name: value for name, value in found.items() if value is not None}
