"""The verbs train and evaluate.

Each opens what it needs in the order in which things can go wrong cheaply: folder, tokenizer, data, weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lorikeet import config
from lorikeet.adapters import _storage as storage
from lorikeet.api.base import Base, prepare, refuse_quant
from lorikeet.api.continuing import attach_new, with_parent
from lorikeet.api.guarding import ended_by, ends_told, guarded, reopen
from lorikeet.api.measuring import Replies, check_scores, keep_best
from lorikeet.api.resuming import adapter_identity, as_begun, identity, resumable, resume, what_was_forced
from lorikeet.api.rows import check_steps, longest_row, run_steps, step_batches, validation_rows, with_row_tokens
from lorikeet.base.files import need_space, new_folder, write_file
from lorikeet.base.log import note
from lorikeet.config import Recipe
from lorikeet.infer.engine import Engine
from lorikeet.models.causal_lm import CausalLM
from lorikeet.train import state as run_state
from lorikeet.train.capacity import keep_holes_small
from lorikeet.train.limits import Budget
from lorikeet.train.loop import train as train_loop
from lorikeet.train.memory import held_bytes
from lorikeet.train.optim import check_dtype
from lorikeet.train.report import write_report
from lorikeet.train.run import Run, summarise
from lorikeet.train.status import Record, recorded
from lorikeet.train.tracking import check_trackers, told

GIB = 1 << 30


def train(
    recipe: Recipe, *, overwrite: bool = False, force_resume: bool = False, stop_after: int | None = None
) -> dict[str, Any]:
    """Run a recipe, or go on with it where its output_dir holds a checkpoint. Returns the summary.

    Where it would go on with something else than it began with, that is refused with both sides, unless
    `force_resume`, which is written down. Raises Interrupted (exit code 3) after saving when asked to stop, and behind
    step `stop_after`."""
    folder, started, budget = recipe.output_dir, time.time(), Budget(recipe.limits)
    config.check_effects(recipe)
    run_state.check_folder(folder, overwrite=overwrite)
    need_space(folder, GIB // 4, "checkpoints and the adapter")
    check_trackers(recipe.train.report_to)
    check_scores(recipe)
    recipe, parent = with_parent(recipe)
    asked_of_model = recipe.model
    recipe, base, template, prepared = prepare(recipe if overwrite else as_begun(recipe))
    refuse_quant(recipe, base.checkpoint)
    check_steps(recipe, prepared)
    if parent is not None:
        parent.check_base(recipe, base)
    with run_state.locked(folder), _cleared(folder, overwrite=overwrite) as record, resumable(folder):
        note(f"data: {prepared}")
        model = _loaded(base, recipe)
        recipe = with_row_tokens(recipe, model)
        keep_holes_small(model.shape, model.dtype, model.device, longest_row(recipe, prepared))
        attach_new(recipe, model, parent)
        parameters = recipe.adapter.parameters(model)
        _say_what_trains(recipe, model, parameters)
        said = identity(recipe, base, template, prepared, model, parent)
        known = adapter_identity(recipe, said, prepared.system)
        saver = partial(storage.save_adapter, adapter=recipe.adapter, model=model, identity=known)
        run = Run(
            folder,
            model,
            parameters,
            partial(step_batches, prepared.train, recipe, model),
            run_steps(recipe, prepared),
            partial(saver, final=False),
            validation_rows(recipe, prepared, model),
            recipe.evaluate.before,
            said,
            stop_after=stop_after,
        )
        done, stepper = resume(guarded(run, recipe, prepared, budget), recipe, force=force_resume)
        reopen(folder)
        config.save(recipe.model_copy(update={"model": asked_of_model}), folder / "recipe.yaml")
        replies = Replies(run, recipe, prepared, Engine(model, base.tokenizer, template))
        if done.step == 0:
            replies.show("before")
        record.begins(done.step, run.steps, held_bytes(model, parameters, recipe.train.optim))
        heard = told(folder, recipe.train.report_to, record.id, recipe.model_dump(mode="json"))
        with heard as run.metrics, ends_told(run, done):
            outcome = keep_best(train_loop(run, recipe.train, done=done, stepper=stepper), run, recipe)
        with new_folder(folder / "adapter") as adapter_folder:
            saver(adapter_folder)
        if budget.enough_for("samples"):
            replies.show("after")
        summary = summarise(outcome, run, wall_seconds=time.time() - started) | {"data": prepared.as_dict()}
        return _ended(run, summary | ({} if parent is None else {"parent": parent.as_dict()}), done.step)


def _loaded(base: Base, recipe: Recipe) -> CausalLM:
    """The model. Raises RecipeError for an option that training in its dtype cannot do."""
    model = base.load(recipe.quant)
    check_dtype(recipe.train, model.dtype)
    return model


def _ended(run: Run, summary: dict[str, Any], step: int) -> dict[str, Any]:
    """Write summary and report. Raises Interrupted where a limit ended the run."""
    summary |= what_was_forced(run.folder) | ended_by(run)
    write_file(run.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_report(run.folder)
    if run.budget.ended_by:
        raise run.budget.interrupted(run.folder, step, run.steps)
    return summary


def _cleared(folder: Path, *, overwrite: bool) -> AbstractContextManager[Record]:
    """Remove what is in the way. Returns the run's status. Raises OutputError where another run has come to its end
    here while this one was prepared."""
    run_state.check_folder(folder, overwrite=overwrite)
    run_state.empty_folder(folder) if overwrite else run_state.clear_leftovers(folder)
    return recorded(folder)


def _say_what_trains(recipe: Recipe, model: CausalLM, parameters: Mapping[str, nn.Parameter]) -> None:
    size = f"{sum(parameter.numel() for parameter in parameters.values()):,} trainable parameters"
    kept = f"{str(model.dtype).removeprefix('torch.')} on {model.device}{recipe.quant.remark}"
    note(f"model: {recipe.model.path}, {model.shape.layers} layers, {kept}; {size}")
