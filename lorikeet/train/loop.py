"""The training loop: straight from the first step to the last.

Data comes as a pure function of the step, the learning rate too; so going on after a stop is loading the tensors and
counting from there.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from rich.progress import TextColumn
from torch import nn

from lorikeet.base.errors import Interrupted, TrainingError
from lorikeet.base.log import note, progress
from lorikeet.base.nouns import Batch
from lorikeet.base.rng import derive
from lorikeet.kernels.build import compile_seconds
from lorikeet.models.causal_lm import CausalLM
from lorikeet.train.census import Census
from lorikeet.train.evaluate import EvalResult, evaluate
from lorikeet.train.metrics import Metrics, peak_device_bytes, peak_rss_bytes
from lorikeet.train.noise import NoiseOptions
from lorikeet.train.optim import OptimOptions, Stepper, check_schedule, learning_rate, warmup
from lorikeet.train.state import save_checkpoint
from lorikeet.train.step import StepResult, train_step


class TrainOptions(OptimOptions, NoiseOptions):
    """The recipe's `train` section."""

    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the training data.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many steps, whatever the epochs.")
    examples_per_step: int = Field(16, ge=1, description="Conversations per optimizer step, over all devices.")
    per_device_train_batch_size: int | None = Field(
        None, ge=1, description="With gradient_accumulation_steps: another way to write examples_per_step, the product."
    )
    gradient_accumulation_steps: int | None = Field(None, ge=1, description="See per_device_train_batch_size.")
    row_tokens: int | None = Field(
        None, ge=16, description="Most tokens of one packed micro-batch; by default from the machine's memory."
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
        size, accumulation = size or 1, accumulation or 1
        if not (isinstance(size, int) and isinstance(accumulation, int)):
            return values  # the fields say what is wrong with them
        product = size * accumulation
        if values.get("examples_per_step", product) != product:
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


@dataclass
class Progress:
    """What has been done so far; saved with each checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # in training steps, without evaluation and saving
    loss_sum: float = 0.0
    eval_before: float | None = None


@dataclass(frozen=True)
class Outcome:
    done: Progress
    evaluation: EvalResult | None
    peak_rss_bytes: int
    peak_device_bytes: int | None


def train(run: Run, options: TrainOptions, *, done: Progress | None = None, stepper: Stepper | None = None) -> Outcome:
    """Run steps done.step .. run.steps. Raises Interrupted after saving when asked to stop, TrainingError for
    numbers that are not finite."""
    check_schedule(options, run.steps)
    done = done or Progress()
    stepper = stepper or Stepper(run.parameters, options)
    metrics, census = Metrics(run.folder / "metrics.jsonl"), Census(run.parameters)
    counted = done.step > 0  # the interrupted run has counted
    if run.steps > 1 and warmup(options, run.steps) >= run.steps:
        note(f"the warm-up takes all {run.steps} steps: the learning rate never reaches {options.learning_rate:g}")
    for line in (options.optim.remark(run.model.device), options.remark()):
        if line:
            note(line)
    run.model.gradient_checkpointing = options.gradient_checkpointing
    validated: tuple[int, EvalResult] | None = None
    if run.validation and run.evaluate_before and done.step == 0:
        result = _validate(run, metrics, 0)
        done.eval_before = result.loss
    with _stop_requests() as stop, progress(TextColumn("{task.fields[now]}")) as bar:
        task = bar.add_task("training", total=run.steps, completed=done.step, now="")
        while done.step < run.steps:
            rate = learning_rate(options, done.step, run.steps)
            start = time.perf_counter()
            batches = run.batches(done.step)
            seed = derive(options.seed, "step", done.step)
            result_ = train_step(run.model, stepper, batches, learning_rate=rate, seed=seed, noise=options)
            _check(result_, done.step)
            if not counted and (counted := census.count(rate)) and (line := census.unreached()):
                note(line)
            done.step += 1
            done.tokens += result_.tokens
            done.seconds += time.perf_counter() - start
            done.loss_sum += result_.loss
            _log(metrics, done, result_, rate, options)
            bar.update(task, advance=1, now=_now(result_, rate))
            if run.validation and options.eval_steps and done.step % options.eval_steps == 0:
                validated = done.step, _validate(run, metrics, done.step)
            last = done.step == run.steps
            if stop or last or (options.save_steps and done.step % options.save_steps == 0):
                save(run, options, stepper, done)
            if stop and not last:
                raise Interrupted(
                    f"stopped after step {done.step} of {run.steps}; everything is saved",
                    try_="the same command goes on from here",
                )
    if run.validation and (validated is None or validated[0] != done.step):
        validated = done.step, _validate(run, metrics, done.step)
    device_peak = peak_device_bytes(run.model.device)
    return Outcome(done, validated[1] if validated else None, peak_rss_bytes(), device_peak)


def save(run: Run, options: TrainOptions, stepper: Stepper, done: Progress) -> None:
    """Write a checkpoint of the run as it stands."""
    state = {"identity": run.identity, "progress": vars(done)}
    save_checkpoint(run.folder, done.step, run.save_adapter, stepper, state, options.save_total_limit)


def _check(result: StepResult, step: int) -> None:
    for name, value in (("loss", result.loss), ("gradient norm", result.grad_norm)):
        if not torch.isfinite(torch.tensor(value)):
            raise TrainingError(
                f"the {name} of step {step + 1} is {value}",
                try_="a lower learning_rate, more warm-up, or model.dtype=float32; earlier checkpoints are whole",
            )


def _log(metrics: Metrics, done: Progress, result: StepResult, rate: float, options: TrainOptions) -> None:
    if done.step % options.logging_steps and done.step != 1:
        return
    row = {
        "kind": "train",
        "step": done.step,
        "loss": result.loss,
        "learning_rate": rate,
        "grad_norm": result.grad_norm,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens / result.seconds,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    metrics.append(row)


def _now(result: StepResult, rate: float) -> str:
    gib = peak_rss_bytes() / (1 << 30)
    return f"loss {result.loss:.3f} lr {rate:.1e} {result.tokens / result.seconds:.0f} tok/s {gib:.2f} GiB"


def _validate(run: Run, metrics: Metrics, step: int) -> EvalResult:
    assert run.validation is not None
    result = evaluate(run.model, run.validation)
    metrics.append({"kind": "eval", "step": step, **vars(result)})
    note(
        f"step {step}: validation loss {result.loss:.4f}, perplexity {result.perplexity:.2f}, "
        f"token accuracy {result.token_accuracy:.1%}"
    )
    return result


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that fills when Ctrl-C or a TERM signal asks to stop; the step in progress is finished and saved.

    A second Ctrl-C ends the process at once, as usual."""
    asked: list[int] = []

    def ask(number: int, _frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        note("stopping after this step; press Ctrl-C again to stop at once")

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        yield asked
        return
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def summarise(outcome: Outcome, run: Run, *, wall_seconds: float) -> dict[str, Any]:
    """summary.json: what the run did, in numbers. Training seconds are those of the steps alone."""
    done, evaluation = outcome.done, outcome.evaluation
    found: dict[str, Any] = {
        "train_loss": done.loss_sum / done.step,
        "eval_loss": evaluation.loss if evaluation else None,
        "eval_loss_before": done.eval_before,
        "perplexity": evaluation.perplexity if evaluation else None,
        "token_accuracy": evaluation.token_accuracy if evaluation else None,
        "steps": done.step,
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
