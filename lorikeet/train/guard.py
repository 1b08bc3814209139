"""A step that meets what can go wrong in one: memory that ends, numbers that are not finite, losses that jump.

Memory: the step's gradients are dropped, the row that did not fit is cut in two (halves.py), and the step is computed
again, which gives the same gradient to rounding. Rows as long as that one are cut beforehand from then on. Numbers:
see finite.py. What happened stands in metrics.jsonl, and what has to be known after a stop in the run's progress.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from lorikeet.base.errors import TrainingError
from lorikeet.base.log import note
from lorikeet.base.memory_errors import memory_ended
from lorikeet.base.nouns import Batch
from lorikeet.train import culprit, rehearsal
from lorikeet.train.finite import row_of_metrics, trouble
from lorikeet.train.halves import halves
from lorikeet.train.loss_scale import LossScale
from lorikeet.train.memory_ceiling import Ceiling
from lorikeet.train.metrics import Metrics
from lorikeet.train.optim import Stepper, check_dtype
from lorikeet.train.options import TrainOptions
from lorikeet.train.out_of_memory import OutOfMemory, release
from lorikeet.train.run import Progress, Run
from lorikeet.train.spikes import remember
from lorikeet.train.step import StepResult, train_step

Part = tuple[str, Batch]  # a micro-batch and its name, from which its dropout follows
REMEDY = "a lower train.learning_rate, more warm-up, model.dtype=float32"


class Guard:
    """Takes the place of `train_step`. `save` writes a checkpoint of the run before the step."""

    def __init__(self, run: Run, options: TrainOptions, stepper: Stepper, metrics: Metrics, done: Progress):
        self.run, self.options, self.stepper, self.metrics, self.done = run, options, stepper, metrics, done
        check_dtype(options, run.model.dtype)
        memory = run.budget.limits.amount("memory")
        self.ceiling = Ceiling(run.model.device, None if memory is None else int(memory))
        self.splits: list[str] = []  # the last step's rows, and parts of rows, that were cut
        self.scale = LossScale(**done.loss_scale) if done.loss_scale else None
        self._in_a_spike = False
        self._shown_by_first: rehearsal.Costliest | None = None
        if run.model.dtype == torch.float16:
            self.scale = self.scale or LossScale()

    def begin(self) -> None:
        """Before the first step of this start: the costliest row, where it is worth it."""
        look, step, steps = self.run.costliest, self.done.step, self.run.steps
        if look is None or step >= steps or not rehearsal.due(self.options, step, steps):
            return
        found = look()
        if rehearsal.first_is_costliest(found, self.run.batches(self.done.step)):
            self._shown_by_first = found
            return
        row = found.row
        while True:
            failed = None
            try:
                with self.ceiling.held():
                    rehearsal.rehearse(self.run.model, self.stepper, row, found.rows, self.options)
                break
            except (RuntimeError, MemoryError, OSError) as error:
                failed = memory_ended(error)
                if failed is None:
                    raise
            release(self.run.model.device)
            smaller = halves(row)
            if smaller is None:
                raise OutOfMemory(0, len(row.tokens), failed, self.ceiling.by)
            note(f"memory does not suffice for a row of {len(row.tokens):,} tokens: rows as long are split")
            self.done.split_from = len(row.tokens)
            row = max(smaller, key=lambda half: len(half.tokens))
        self._certify(found)

    def _certify(self, found: rehearsal.Costliest) -> None:
        peak = rehearsal.peak_bytes(self.run.model.device)
        note(found.says(peak))
        self.metrics.append({"kind": "memory", "step": self.done.step, "certified_peak_bytes": peak})

    def step(
        self, batches: Sequence[Batch], *, rate: float, seed: int, save: Callable[[], Any], splits: Sequence[str] = ()
    ) -> StepResult:
        """Forward, backward, update. `splits`: how an interrupted run cut this step's rows. Raises TrainingError, after
        `save`, for what no policy helps against."""
        self.splits = []
        try:
            result = self._judged(list(self._cut(batches, set(splits))), rate, seed)
        except OutOfMemory as error:
            if error.row is not None:
                save()
            raise
        except _Refused as error:
            if not error.moved:
                save()
            raise error.told from None
        if self._shown_by_first is not None:
            self._certify(self._shown_by_first)
            self._shown_by_first = None
        return result

    def _judged(self, parts: list[Part], rate: float, seed: int) -> StepResult:
        done, options = self.done, self.options
        result = self._scaled(parts, rate, seed)
        spike = options.spike(done.recent_losses, result.loss)
        if spike is not None:
            self._tell_spike(result.loss, spike)
        self._in_a_spike = spike is not None
        if result.moved:
            remember(done.recent_losses, result.loss)
            done.skipped_in_a_row = 0
            return result
        why = trouble(result, done.step)
        lost = options.optimizer_in_backward and not result.refused
        jumped = spike is not None and result.refused  # a spike that is only warned of may have a bad gradient too
        found = None if jumped else self._culprit(parts, seed, lost)
        policy = options.on_loss_spike if jumped else options.on_nonfinite
        # the state before a step that ends the run, which is saved, counts nothing of that step
        if policy == "stop" or lost or done.skipped_in_a_row >= options.max_skipped_steps:
            raise _Refused(self._error(why, found, policy, lost), lost)
        done.skipped_in_a_row += 1
        done.skipped += 1
        rows = {} if found is None else asdict(found)
        self.metrics.append(row_of_metrics(done.step, why, rows))
        note(f"{why}: the step is left out" + (f" ({found.line()})" if found else ""))
        return result

    def _scaled(self, parts: list[Part], rate: float, seed: int) -> StepResult:
        """With float16, at smaller scales until gradients are finite. Where none helps the scale is not at fault, and
        stays what it was: the least of all would lose the gradients of the steps behind."""
        before = None if self.scale is None else self.scale.scale
        while True:
            self.stepper.scale = 1.0 if self.scale is None else self.scale.scale
            result = self._fitted(parts, rate, seed)
            if self.scale is None or result.refused:
                return result
            if result.moved:
                self.scale.worked()
            finished = result.moved or not self.scale.overflowed()
            if finished and not result.moved and before is not None:
                self.scale.scale = before
            self.done.loss_scale = asdict(self.scale)
            if finished:
                return result

    def _fitted(self, parts: list[Part], rate: float, seed: int) -> StepResult:
        """In rows that fit; `parts` is changed in place to those."""
        while True:
            try:
                with self.ceiling.held():
                    return train_step(
                        self.run.model,
                        self.stepper,
                        [row for _, row in parts],
                        learning_rate=rate,
                        seed=seed,
                        noise=self.options,
                        names=[name for name, _ in parts],
                        accept=lambda loss: self.options.accepts(self.done.recent_losses, loss),
                    )
            except OutOfMemory as error:
                at, tokens, reason = error.row, error.tokens, error.reason
            release(self.run.model.device)
            self._split(parts, at, tokens, reason)

    def _split(self, parts: list[Part], at: int | None, tokens: int, reason: str) -> None:
        by = self.ceiling.by
        if at is None:
            raise OutOfMemory(None, tokens, reason, by)
        name, row = parts[at]
        smaller = halves(row)
        if smaller is None:
            raise OutOfMemory(at, tokens, reason, by)
        parts[at : at + 1] = self._halves(name, row, smaller)
        into = [len(half.tokens) for half in smaller]
        self.metrics.append(
            {"kind": "split", "step": self.done.step + 1, "row": name, "tokens": tokens, "into": into, "why": reason}
        )
        shown = " and ".join(f"{size:,}" for size in into)
        note(f"step {self.done.step + 1}: memory ended in a row of {tokens:,} tokens; it is computed as {shown}")

    def _cut(self, batches: Sequence[Batch], known: set[str]) -> Iterator[Part]:
        """The step's rows, those cut that are as long as one that did not fit in an earlier step. Rows that are
        `known` set no limit to the others of the step: they may have fitted when it was done first."""
        waiting = [(str(i), row) for i, row in enumerate(batches)]
        limit = self.done.split_from
        while waiting:
            name, row = waiting.pop(0)
            wanted = name in known or (limit is not None and len(row.tokens) >= limit)
            smaller = halves(row) if wanted else None
            if smaller is None:
                yield name, row
            else:
                waiting[:0] = self._halves(name, row, smaller)

    def _halves(self, name: str, row: Batch, smaller: Sequence[Batch]) -> list[Part]:
        self.splits.append(name)
        self.done.split_from = min(len(row.tokens), self.done.split_from or len(row.tokens))
        return [(f"{name}.{i}", half) for i, half in enumerate(smaller)]

    def _culprit(self, parts: list[Part], seed: int, lost: bool) -> culprit.Culprit:
        examples = self.run.examples(self.done.step) if self.run.examples else []
        if lost:  # weights are not finite any more, so nothing can be computed again
            return culprit.Culprit([], self.stepper.not_finite)
        return culprit.find(self.run.model, self.stepper, parts, seed=seed, noise=self.options, examples=examples)

    def _tell_spike(self, loss: float, limit: float) -> None:
        step = self.done.step + 1
        self.metrics.append({"kind": "spike", "step": step, "loss": loss, "limit": limit})
        if not self._in_a_spike:
            note(f"step {step}: the loss jumped to {loss:.3f}; the last {len(self.done.recent_losses)} say {limit:.3f}")

    def _error(self, why: str, found: culprit.Culprit | None, policy: str, lost: bool) -> TrainingError:
        done, options = self.done, self.options
        if lost:
            return TrainingError(
                f"{why}, and weights have moved in the pass already",
                given=found and found.layer,
                try_=f"{REMEDY}; earlier checkpoints are whole, train.optimizer_in_backward=false moves them later",
            )
        many = f"; {done.skipped_in_a_row + 1} steps in a row are left out" if policy == "skip" else ""
        option = "on_nonfinite=skip" if found is not None else "on_loss_spike=warn"
        more = f"train.max_skipped_steps above {options.max_skipped_steps}" if many else f"train.{option} to go on"
        remedy = f"{REMEDY}, or {more}" if found is not None else more
        return TrainingError(
            f"{why}{many}",
            given=None if found is None else found.line(),
            try_=f"{remedy}; everything up to step {done.step} is saved" if done.step else remedy,
        )


class _Refused(Exception):
    """A step that ends the run. `moved`: weights are not what they were before it."""

    def __init__(self, told: TrainingError, moved: bool):
        self.told, self.moved = told, moved
