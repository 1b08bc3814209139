"""The training loop: straight from the first step to the last.

Data comes as a pure function of the step, the learning rate too; so going on after a stop is loading the tensors and
counting from there. What else a run does (measure, write down, watch, stop) is a file of its own beside this one, and
one call in here.
"""

from __future__ import annotations

import time
from functools import partial

from rich.progress import TextColumn

from lorikeet.base.errors import Interrupted
from lorikeet.base.log import note, progress
from lorikeet.base.rng import derive
from lorikeet.train.census import Census
from lorikeet.train.chain import Chain
from lorikeet.train.guard import Guard
from lorikeet.train.memory import memory_now
from lorikeet.train.metrics import Metrics, peak_device_bytes, peak_rss_bytes
from lorikeet.train.optim import Stepper, check_schedule, learning_rate, warmup
from lorikeet.train.options import TrainOptions
from lorikeet.train.run import Outcome, Progress, Run
from lorikeet.train.state import checkpoints, save_checkpoint
from lorikeet.train.step import StepResult
from lorikeet.train.stopping import Stop, stop_requests
from lorikeet.train.validation import Validation


def train(run: Run, options: TrainOptions, *, done: Progress | None = None, stepper: Stepper | None = None) -> Outcome:
    """Run steps done.step .. run.steps. Raises Interrupted after saving when asked to stop, TrainingError for
    numbers that are not finite."""
    done = done or Progress()
    stepper = stepper or Stepper(run.parameters, options)
    metrics = run.metrics or Metrics(run.folder / "metrics.jsonl")
    census, validation = Census(run.parameters, counted=done.step > 0), Validation(run, options, metrics)
    chain = Chain(metrics, run.parameters, done.chain, run.again)
    _remarks(run, options)
    run.model.gradient_checkpointing = options.gradient_checkpointing
    guard, budget = Guard(run, options, stepper, metrics, done), run.budget
    budget.remember([row for row in metrics.rows() if row.get("kind") == "train"] if done.step else [])
    validation.before(done)
    guard.begin()
    with stop_requests() as stop, progress(TextColumn("{task.fields[now]}")) as bar:
        task = bar.add_task("training", total=run.steps, completed=done.step, now="")
        if done.ended is not None:
            stop.ask(done.ended, finished=True)
        budget.look(stop, run, done)
        stop.behind(run.stop_after, done.step)
        while done.step < run.steps and not stop.now:
            start, rate = time.perf_counter(), learning_rate(options, done.step, run.steps)
            batches = run.batches(done.step)
            seed = derive(options.seed, "step", done.step)
            splits, before = chain.splits_of(done.step + 1), partial(_save_before, run, options, stepper, done)
            with budget.timed("step"):
                result = guard.step(batches, rate=rate, seed=seed, splits=splits, save=before)
            if result.moved:
                census.after_step(rate)
            done.add(result, time.perf_counter() - start)
            done.chain = chain.after_step(done.step, batches, result.loss, result.grad_norm, guard.splits)
            _log(metrics, done, result, rate, options, run)
            bar.update(task, advance=1, now=_now(result, rate))
            validation.after_step(done, stop)
            budget.look(stop, run, done)
            stop.behind(run.stop_after, done.step)
            to_keep = _due(options.save_steps, done) or validation.to_keep(done)
            if stop.now or to_keep or done.step == run.steps:
                metrics.sync()
                with budget.timed("save"):
                    save(run, options, stepper, done)
    _refuse_unfinished(stop, done, run)
    evaluation = validation.at_the_end(done)
    return Outcome(
        done, evaluation, peak_rss_bytes(), peak_device_bytes(run.model.device), run.differed or chain.differs
    )


def save(run: Run, options: TrainOptions, stepper: Stepper, done: Progress) -> None:
    """Write a checkpoint of the run as it stands."""
    state = {"identity": run.identity, "progress": vars(done)}
    keep, best = options.save_total_limit, done.best_step
    save_checkpoint(run.folder, done.step, run.save_adapter, stepper, state, keep, spare=best)


def _save_before(run: Run, options: TrainOptions, stepper: Stepper, done: Progress) -> None:
    """The same before a step that cannot be made, where nothing of it is there yet."""
    if done.step and done.step not in checkpoints(run.folder):
        save(run, options, stepper, done)


def _due(every: int | None, done: Progress) -> bool:
    return bool(every) and done.step % (every or 1) == 0


def _remarks(run: Run, options: TrainOptions) -> None:
    """What the person should know of the options before the first step. Raises RecipeError for a schedule that does
    not fit."""
    check_schedule(options, run.steps)
    if run.steps > 1 and warmup(options, run.steps) >= run.steps:
        note(f"the warm-up takes all {run.steps} steps: the learning rate never reaches {options.learning_rate:g}")
    for line in (options.optim.remark(run.model.device, run.parameters.values()), options.remark()):
        if line:
            note(line)


def _refuse_unfinished(stop: Stop, done: Progress, run: Run) -> None:
    """Raise Interrupted where the run was stopped before its end."""
    if run.budget.ended_by and done.step == 0:
        raise run.budget.interrupted(run.folder, done.step, run.steps)
    if done.step < run.steps and not stop.finished and not run.budget.ended_by:
        raise Interrupted(
            f"stopped after step {done.step} of {run.steps}; everything is saved",
            given=stop.reason,
            try_="the same command goes on from here",
        )


def _log(metrics: Metrics, done: Progress, result: StepResult, rate: float, options: TrainOptions, run: Run) -> None:
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
    metrics.append(row | memory_now(run.model.device))


def _now(result: StepResult, rate: float) -> str:
    gib = peak_rss_bytes() / (1 << 30)
    return f"loss {result.loss:.3f} lr {rate:.1e} {result.tokens / result.seconds:.0f} tok/s {gib:.2f} GiB"
