"""Measuring on held-out rows while a run goes: when, what was found last, and what follows from it."""

from __future__ import annotations

from lorikeet.base.log import note
from lorikeet.train.best import judge
from lorikeet.train.evaluate import EvalResult, evaluate
from lorikeet.train.metrics import Metrics
from lorikeet.train.options import TrainOptions
from lorikeet.train.run import Progress, Run
from lorikeet.train.stopping import Stop


class Validation:
    """The run's held-out rows; does nothing where it has none."""

    def __init__(self, run: Run, options: TrainOptions, metrics: Metrics):
        self.run, self.options, self.metrics = run, options, metrics
        self.last: tuple[int, EvalResult] | None = None  # (step, result)

    def before(self, done: Progress) -> None:
        """Before the first step of a run that begins."""
        if self.run.validation and self.run.evaluate_before and done.step == 0:
            done.eval_before = self._measure(0).loss

    def after_step(self, done: Progress, stop: Stop) -> None:
        """After a finished step, where it is due. Asks to stop where nothing better came for too long."""
        every = self.options.eval_steps
        if self.run.validation and every and done.step % every == 0:
            self.last = done.step, self._measure(done.step)
            if judge(self.options, done, self.last[1].as_row()) and done.step < self.run.steps:
                metric = self.options.metric_for_best_model
                done.ended = f"no better {metric} in {done.waited} evaluations"
                note(f"{done.ended}: the run ends here")
                stop.ask(done.ended, finished=True)
        if self.run.sample is not None:
            self.run.sample(done.step)

    def to_keep(self, done: Progress) -> bool:
        """Whether the model as it stands is the best one so far, and wanted at the end."""
        return self.options.load_best_model_at_end and done.best_step == done.step

    def at_the_end(self, done: Progress) -> EvalResult | None:
        """What the trained model comes to."""
        if not self.run.validation:
            return None
        if self.last is None:  # of a run that was killed behind its last checkpoint
            rows = [row for row in self.metrics.rows() if row.get("kind") == "eval" and row.get("step") == done.step]
            self.last = (done.step, EvalResult.from_row(rows[-1])) if rows and done.step else None
        if self.last is None or self.last[0] != done.step:
            self.last = done.step, self._measure(done.step)
            judge(self.options, done, self.last[1].as_row())
        return self.last[1]

    def _measure(self, step: int) -> EvalResult:
        assert self.run.validation is not None
        with self.run.budget.timed("evaluate"):
            result = evaluate(self.run.model, self.run.validation)
            if self.run.score is not None:
                result.scores.update(self.run.score())
        self.metrics.append({"kind": "eval", "step": step, **result.as_row()})
        scores = "".join(f", {name} {value:.3f}" for name, value in result.scores.items())
        note(
            f"step {step}: validation loss {result.loss:.4f}, perplexity {result.perplexity:.2f}, "
            f"token accuracy {result.token_accuracy:.1%}{scores}"
        )
        return result
