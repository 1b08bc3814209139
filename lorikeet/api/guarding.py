"""What the training loop needs to guard a run, made from the recipe: the costliest row, a step's conversations by
file and line, and the limits; and the end of a run that met one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lorikeet.api.rows import run_steps, step_batches
from lorikeet.base.files import write_file
from lorikeet.base.nouns import Example
from lorikeet.config import Recipe
from lorikeet.data.pack import step_examples, steps_per_epoch
from lorikeet.data.pipeline import Prepared
from lorikeet.infer.samples import LONGEST
from lorikeet.models.causal_lm import CausalLM
from lorikeet.plan.steps import costliest
from lorikeet.train.limits import BYTES_A_SECOND, Budget, check_memory, checkpoint_bytes, reserve_disk
from lorikeet.train.options import TrainOptions
from lorikeet.train.out_of_memory import OutOfMemory
from lorikeet.train.rehearsal import Costliest
from lorikeet.train.run import Progress, Run

TOKEN_SECONDS = 0.1  # of a token of the answers for the report, before any were given


def guarded(run: Run, recipe: Recipe, prepared: Prepared, budget: Budget) -> Run:
    """The run with what guards it. Raises OutputError where its checkpoints have no room, on the disk or in
    limits.disk, RecipeError where the model has none in limits.memory."""
    run.budget = budget
    run.examples, run.costliest = _examples(recipe, prepared), _costliest(recipe, prepared, run.model)
    check_memory(recipe.limits, run.model.device)
    each = checkpoint_bytes(run.parameters, recipe.train.optim)
    reserve_disk(run.folder, recipe.limits, each, _most_checkpoints(recipe.train, run.steps))
    budget.expect("save", 0.5 + each / BYTES_A_SECOND)
    if prepared.validation is not None and recipe.evaluate.samples:
        budget.expect("samples", TOKEN_SECONDS * min(recipe.generate.max_new_tokens, LONGEST))
    return run


def _most_checkpoints(options: TrainOptions, steps: int) -> int:
    """How many checkpoints there may be at once: those that are due, one at the end, one where it is stopped. Whoever
    says a very large save_total_limit means all."""
    due = [options.save_steps, options.eval_steps if options.load_best_model_at_end else None]
    return min(options.save_total_limit, 2 + sum(steps // every for every in due if every))


def _examples(recipe: Recipe, prepared: Prepared) -> Callable[[int], Sequence[Example]]:
    options = recipe.train
    return partial(step_examples, prepared.train, seed=options.seed, examples_per_step=options.examples_per_step)


def _costliest(recipe: Recipe, prepared: Prepared, model: CausalLM) -> Callable[[], Costliest]:
    def look() -> Costliest:
        found = costliest(
            partial(step_batches, prepared.train, recipe, model),
            epoch_steps=steps_per_epoch(prepared.foreseen_examples, recipe.train.examples_per_step),
            steps=run_steps(recipe, prepared),
            layers=model.shape.layers,
        )
        return Costliest(found.batches[0], found.step, len(found.rows), found.looked_at)

    return look


@contextmanager
def ends_told(run: Run, done: Progress) -> Iterator[None]:
    """Training in this block. Where limits.memory ends it, summary.json says so."""
    try:
        yield
    except OutOfMemory as error:
        if error.by == "limits.memory" and error.row is not None:
            run.budget.ended_by = "memory"
            found = {"steps": done.step, "tokens": done.tokens, "seconds": done.seconds, **ended_by(run)}
            write_file(run.folder / "summary.json", json.dumps(found, indent=2) + "\n")
        raise


def ended_by(run: Run) -> dict[str, Any]:
    """What summary.json says of a run that a limit ended."""
    if run.budget.ended_by is None:
        return {}
    name, remedy = run.budget.line(run.folder)
    return {"ended_by": name, "go_on": remedy}


def reopen(folder: Path) -> None:
    """Remove the end of a run that a limit ended, before it goes on: what it learned stands in its checkpoints."""
    if not (folder / "summary.json").exists():
        return
    for name in ("summary.json", "report.html"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "adapter", ignore_errors=True)
