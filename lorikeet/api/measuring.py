"""What a run measures on replies while it goes, and which of its models it leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lorikeet.adapters import _storage as storage
from lorikeet.base.heap import give_back
from lorikeet.base.log import note
from lorikeet.base.nouns import Example
from lorikeet.config import Recipe
from lorikeet.data.pipeline import Prepared
from lorikeet.data.roles import asked_of
from lorikeet.infer.answers import answers
from lorikeet.infer.engine import Engine
from lorikeet.infer.samples import write_samples
from lorikeet.infer.scores import check_installed, score
from lorikeet.train import state as run_state
from lorikeet.train.evaluate import EvalResult
from lorikeet.train.run import Outcome, Run


def check_scores(recipe: Recipe) -> None:
    """Raise MissingExtra for a package that an evaluation would miss, before anything is loaded."""
    check_installed(recipe.evaluate.metrics)


class Replies:
    """What a run's model answers while it trains: samples for the report, and what is measured. Neither draws from
    anything that training draws from."""

    def __init__(self, run: Run, recipe: Recipe, prepared: Prepared, engine: Engine):
        """Tells the run to ask for them as the recipe says."""
        self.run, self.recipe, self.engine = run, recipe, engine
        options = recipe.evaluate
        held_out: Sequence[Example] = prepared.validation or []
        most = max(options.samples, options.prompts if options.metrics else 0)
        first = [held_out[i] for i in range(min(most, len(held_out)))]
        asked = asked_of(first, recipe.data, engine.tokenizer, engine.template) if first else []
        self._shown, self._measured = asked[: options.samples], asked[: options.prompts]
        if options.metrics and self._measured:
            run.score = self._score
        if options.sample_steps and self._shown:
            run.sample = self._sample

    def show(self, when: str | int) -> None:
        """Answer the report's prompts, where there are some: before, after, or behind a step."""
        if not self._shown:
            return
        prompts = f"{len(self._shown)} held-out prompt{'s' * (len(self._shown) > 1)}"
        times = {"before": "before training, for the report", "after": "again"}
        note(f"answering {prompts} {times.get(str(when), f'behind step {when}')}")
        with self.run.budget.timed("samples"):
            write_samples(self.run.folder, self.engine, self._shown, self.recipe.generate, when)
        give_back()

    def _sample(self, step: int) -> None:
        every = self.recipe.evaluate.sample_steps
        if every and step % every == 0 and step < self.run.steps:
            self.show(step)

    def _score(self) -> dict[str, float]:
        found = score(answers(self.engine, self._measured, self.recipe.generate), self.recipe.evaluate.metrics)
        give_back()
        return found


def keep_best(outcome: Outcome, run: Run, recipe: Recipe) -> Outcome:
    """Put the model that evaluated best in the place of the last one, where the recipe asks for it. The outcome is
    then that model's."""
    best, done = outcome.done.best, outcome.done
    if not recipe.train.load_best_model_at_end or best is None or best["step"] == done.step:
        return outcome
    folder: Path = run.folder / f"checkpoint-{best['step']}"
    if not run_state.intact(folder):
        note(f"{folder}, the best one, is damaged or gone: the last model is kept")
        return outcome
    storage.fill(run.model, recipe.adapter, storage.read_training(folder), source=folder)
    note(f"the best model is that of step {best['step']}: {best['metric']} {best['value']:.4f}")
    return replace(outcome, evaluation=EvalResult.from_row(best["measured"]))
