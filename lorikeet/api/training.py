"""The verbs train and evaluate.

Each opens what it needs in the order in which things can go wrong cheaply: folder, tokenizer, data, weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lorikeet import config, kernels
from lorikeet.adapters import _storage as storage
from lorikeet.api.base import Base, attach, prepare, refuse_quant
from lorikeet.api.continuing import Parent, with_parent
from lorikeet.base.errors import CheckpointError, RecipeError
from lorikeet.base.files import need_space, new_folder, sha256_file, write_file
from lorikeet.base.heap import give_back, map_large
from lorikeet.base.kinds import own_code
from lorikeet.base.log import note
from lorikeet.base.nouns import Batch, Example
from lorikeet.config import Recipe
from lorikeet.data import sources
from lorikeet.data.pack import ExampleSource, pack_row, plan_rows, run_step, total_steps
from lorikeet.data.pipeline import Prepared
from lorikeet.data.templates._contract import Template
from lorikeet.infer.engine import Engine
from lorikeet.infer.samples import write_samples
from lorikeet.models.causal_lm import CausalLM
from lorikeet.train import state as run_state
from lorikeet.train.capacity import LARGE_STATES, default_row_tokens, tensors_are_large
from lorikeet.train.evaluate import evaluate as evaluate_batches
from lorikeet.train.loop import Progress, Run, summarise
from lorikeet.train.loop import train as train_loop
from lorikeet.train.metrics import Metrics, peak_rss_bytes
from lorikeet.train.optim import Stepper
from lorikeet.train.report import write_report

GIB = 1 << 30


def train(recipe: Recipe, *, overwrite: bool = False) -> dict[str, Any]:
    """Run a recipe, or go on with it where its output_dir holds a checkpoint. Returns the summary.

    Raises Interrupted (exit code 3) after saving when asked to stop."""
    folder, started = recipe.output_dir, time.time()
    config.check_effects(recipe)
    run_state.check_folder(folder, overwrite=overwrite)
    need_space(folder, GIB // 4, "checkpoints and the adapter")
    recipe, parent = with_parent(recipe)
    recipe, base, template, prepared = prepare(recipe)
    refuse_quant(recipe)
    if parent is not None:
        parent.check_base(recipe, base)
    with run_state.locked(folder):
        run_state.empty_folder(folder) if overwrite else run_state.clear_leftovers(folder)
        note(f"data: {prepared}")
        model = base.load(recipe.quant)
        recipe = _with_row_tokens(recipe, model)
        _map_large(recipe, model, prepared)
        _attach(recipe, model, parent)
        parameters = recipe.adapter.parameters(model)
        size = f"{sum(parameter.numel() for parameter in parameters.values()):,} trainable parameters"
        dtype = str(model.dtype).removeprefix("torch.")
        note(f"model: {recipe.model.path}, {base.shape.layers} layers, {dtype} on {model.device}; {size}")
        identity = _identity(recipe, base, template, prepared, model, parent)
        saver = partial(
            storage.save_adapter, adapter=recipe.adapter, model=model, identity=_adapter_identity(recipe, identity)
        )
        run = Run(
            folder,
            model,
            parameters,
            partial(step_batches, prepared.train, recipe, model),
            run_steps(recipe, prepared),
            partial(saver, final=False),
            _validation_rows(recipe, prepared, model),
            recipe.evaluate.before,
            identity,
        )
        done, stepper = _resume(run, recipe)
        config.save(recipe, folder / "recipe.yaml")
        engine = Engine(model, base.tokenizer, template)
        asked = list(prepared.validation or [])[: recipe.evaluate.samples]
        if done.step == 0 and asked:
            note(f"answering {_prompts(asked)} before training, for the report")
            write_samples(folder, engine, asked, recipe.generate, "before")
            give_back()
        outcome = train_loop(run, recipe.train, done=done, stepper=stepper)
        with new_folder(folder / "adapter") as adapter_folder:
            saver(adapter_folder)
        if asked:
            note(f"answering {_prompts(asked)} again")
            write_samples(folder, engine, asked, recipe.generate, "after")
        summary = summarise(outcome, run, wall_seconds=time.time() - started) | {"data": prepared.as_dict()}
        write_file(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        write_report(folder)
    return summary


def evaluate(target: Recipe | Path, *, adapter: Path | None = None, allow_other_base: bool = False) -> dict[str, Any]:
    """Loss, perplexity and token accuracy on a recipe's validation data, with the run's adapter (or `adapter`).

    An adapter of another base or quantisation is refused unless `allow_other_base` (its shapes must fit all the same).
    A bare recipe is evaluated with its run's adapter where there is one, else the base alone."""
    recipe = config.load(target / "recipe.yaml") if isinstance(target, Path) else target
    if sources.validation_of(recipe.data) is None:
        raise RecipeError("data.validation: not set, so there is nothing to evaluate on", try_="data.validation=0.1")
    if isinstance(target, Path) and adapter is None and not (recipe.output_dir / "adapter").exists():
        adapter = target / "adapter"
    recipe, base, _, prepared = prepare(recipe)
    assert prepared.validation is not None
    model = base.load(recipe.quant)
    recipe = _with_row_tokens(recipe, model)
    chosen = adapter or recipe.output_dir / "adapter"
    if used := adapter is not None or chosen.exists():
        attach(model, base, chosen, recipe.quant, allow_other_base=allow_other_base)
    rows = _validation_rows(recipe, prepared, model)
    assert rows is not None
    result = evaluate_batches(model, rows)
    found = {"eval_loss" if name == "loss" else name: value for name, value in vars(result).items()}
    return {
        "adapter": str(chosen) if used else "none",
        **found,
        "conversations": len(prepared.validation),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _attach(recipe: Recipe, model: CausalLM, parent: Parent | None) -> None:
    """Put what trains on the model, as it begins."""
    if parent is not None:
        parent.check_function(recipe, model)
    recipe.adapter.attach(model, seed=recipe.train.seed)
    if parent is not None:
        parent.fill(recipe, model)


def _prompts(asked: Sequence[Example]) -> str:
    return f"{len(asked)} held-out prompt{'s' * (len(asked) > 1)}"


def _with_row_tokens(recipe: Recipe, model: CausalLM) -> Recipe:
    """The recipe with train.row_tokens decided, so that the run's folder says what was used."""
    if recipe.train.row_tokens is not None:
        return recipe
    checkpointing = recipe.train.gradient_checkpointing
    fits = default_row_tokens(model.shape, model.dtype, model.device, gradient_checkpointing=checkpointing)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"row_tokens": fits})})


def _map_large(recipe: Recipe, model: CausalLM, prepared: Prepared) -> None:
    """Keep the holes that a row's large tensors leave from growing the process."""
    assert recipe.train.row_tokens is not None
    longest = max(recipe.train.row_tokens, int(prepared.train.lengths.max(initial=0)))
    if tensors_are_large(model.shape, model.dtype, model.device, longest):
        map_large(LARGE_STATES)


def run_steps(recipe: Recipe, prepared: Prepared) -> int:
    """Steps of the whole run."""
    options = recipe.train
    return total_steps(prepared.epoch_examples, options.examples_per_step, options.num_train_epochs, options.max_steps)


def step_batches(examples: ExampleSource, recipe: Recipe, model: CausalLM, step: int) -> list[Batch]:
    """The run's step as micro-batches: a pure function of the step."""
    options = recipe.train
    assert options.row_tokens is not None
    # the adapter's dropout is drawn for each row, the other draws for each conversation
    share = _may_share(recipe, model) and getattr(recipe.adapter, "lora_dropout", 0) == 0 and not options.draws
    size, capacity = options.examples_per_step, options.row_tokens
    return run_step(examples, step, seed=options.seed, examples_per_step=size, row_tokens=capacity, share=share)


def _may_share(recipe: Recipe, model: CausalLM) -> bool:
    return model.shares_within is None or recipe.data.max_length <= model.shares_within


def _validation_rows(recipe: Recipe, prepared: Prepared, model: CausalLM) -> list[Batch] | None:
    capacity, share = recipe.train.row_tokens, _may_share(recipe, model)
    if prepared.validation is None:
        return None
    assert capacity is not None
    rows = plan_rows(list(prepared.validation), row_tokens=capacity, share=share)
    return [pack_row(row, share=share) for row in rows]


def _identity(
    recipe: Recipe, base: Base, template: Template, prepared: Prepared, model: CausalLM, parent: Parent | None
) -> dict[str, Any]:
    """What must be the same for a run to go on: everything that decides its numbers."""
    cadence = {"logging_steps", "eval_steps", "save_steps", "save_total_limit"}
    return {
        "base": recipe.model.path,
        "model.source": model.source,
        "family": recipe.model.family and sha256_file(Path(recipe.model.family)),
        "base_fingerprint": base.checkpoint.fingerprint(),
        "tokenizer_fingerprint": base.tokenizer.fingerprint,
        "template_fingerprint": template.fingerprint,
        "data": prepared.train.fingerprint,
        "quant": recipe.quant.model_dump(mode="json"),
        "adapter": recipe.adapter.model_dump(mode="json", exclude={"path"}),
        "parent_adapter": None if parent is None else parent.sha256,
        "own_code": [code for one in (recipe.quant, recipe.adapter, recipe.train) for code in own_code(one)] or None,
        "train": recipe.train.model_dump(mode="json", exclude=cadence),
        "optimizer": recipe.train.optim.computes(model.device),
        "dtype": str(model.dtype),
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "kernels": kernels.identity() if model.device.type == "cpu" else "torch",
        "torch": torch.__version__,
    }


def _adapter_identity(recipe: Recipe, identity: dict[str, Any]) -> dict[str, Any]:
    names = ("base", "base_fingerprint", "tokenizer_fingerprint", "template_fingerprint", "data", "quant")
    found = {name: identity[name] for name in names} | {"template": recipe.data.template.model_dump(mode="json")}
    found |= {"add_tokens": recipe.model.add_tokens} if recipe.model.add_tokens else {}
    return found | ({"parent_adapter": identity["parent_adapter"]} if identity["parent_adapter"] else {})


def _resume(run: Run, recipe: Recipe) -> tuple[Progress, Stepper]:
    """Load the newest whole checkpoint, if there is one."""
    shares = recipe.adapter.learning_rate_factors(run.model)
    stepper, last = Stepper(run.parameters, recipe.train, shares), run_state.latest_checkpoint(run.folder)
    metrics = Metrics(run.folder / "metrics.jsonl")
    if last is None:
        if run_state.checkpoints(run.folder):
            raise CheckpointError(f"no checkpoint in {run.folder} is whole", try_="--overwrite to start anew")
        metrics.truncate(-1)
        return Progress(), stepper
    state, optimizer = run_state.read_state(last)
    run_state.check_identity(state["identity"], json.loads(json.dumps(run.identity)), last)
    storage.fill(run.model, recipe.adapter, storage.read_training(last), source=last)
    stepper.load_state_dict(optimizer)
    done = Progress(**state["progress"])
    metrics.truncate(done.step)
    note(f"going on from {last}")
    return done, stepper
