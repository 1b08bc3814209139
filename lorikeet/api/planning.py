"""The verb plan: what a recipe will take, before its weights are here, and what would make it fit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from lorikeet import config, kernels
from lorikeet.api.base import base_of, prepare, refuse_quant, within_context
from lorikeet.api.continuing import with_parent
from lorikeet.api.rows import check_steps, run_steps, step_batches, with_row_tokens
from lorikeet.base import machine
from lorikeet.base.errors import DataError, DownloadError, ModelError, TokenizerError
from lorikeet.base.log import note
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.checkpoints._settings import open_settings
from lorikeet.config import Recipe
from lorikeet.data.pack import steps_per_epoch
from lorikeet.data.pipeline import Prepared
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.load import identify, pick_device, pick_dtype
from lorikeet.models.mapped_embedding import mapped_embedding
from lorikeet.models.stored import fitting, kept_as
from lorikeet.plan import search, speed
from lorikeet.plan.process import Process, Resident, resident
from lorikeet.plan.report import Report, flat, nested
from lorikeet.plan.simulate import Network, Simulated, simulate
from lorikeet.plan.steps import Planned, costliest, full, full_row
from lorikeet.train.capacity import holes_are_lost
from lorikeet.train.optim import check_dtype
from lorikeet.train.options import TrainOptions

LARGE = 0.05  # gradients and an optimizer's state are worth a change from this share of all bytes on
SMALL_STATE = 4  # bytes that an optimizer keeps for a trained number, beyond which one with less is offered


@dataclass(frozen=True)
class _Target:
    """Where the run would be."""

    device: torch.device
    here: bool  # whether this machine has it
    dtype: torch.dtype

    @property
    def measured(self) -> torch.device:
        """The device whose memory is known."""
        return self.device if self.here else torch.device("cpu")


@dataclass(frozen=True)
class _Found:
    """A recipe, simulated."""

    recipe: Recipe
    planned: Planned
    simulated: Simulated
    process: Process

    def trial(self, changes: search.Changes) -> search.Trial:
        per_token = self.simulated.total_flops / sum(len(row.tokens) for row in self.planned.batches)
        largest = self.simulated.largest
        if self.process.base > self.simulated.by_kind[largest]:
            largest = self.process.holds
        return search.Trial(changes, self.process.total, per_token, largest)


@dataclass(frozen=True)
class _Planner:
    """What stays the same between a recipe and the changes to it that are tried."""

    checkpoint: Checkpoint
    prepared: Prepared | None
    target: _Target
    held: Resident  # what the process held before anything was simulated

    def network(self, recipe: Recipe, changes: search.Changes) -> Network:
        """The recipe's network, not yet built."""
        dtype = getattr(torch, changes["model.dtype"]) if "model.dtype" in changes else self.target.dtype
        family, spec = identify(self.checkpoint, recipe.model.choice)
        device = self.target.device
        mapped = None if recipe.model.family else mapped_embedding(self.checkpoint, family, spec, dtype, device)
        return Network(family, spec, kept_as(recipe.quant, self.checkpoint), dtype, mapped)

    def run(self, recipe: Recipe, changes: search.Changes) -> _Found:
        """Simulate the costliest planned step of the recipe with `changes`."""
        if changes:
            note(f"trying {flat(changes)}")
        recipe = _changed(recipe, changes)
        network = self.network(recipe, changes)
        outline = network.build("meta")
        recipe = with_row_tokens(recipe, outline, self.target.measured)
        known = self.prepared if "data.max_length" not in changes else None
        planned = _planned(recipe, outline, known)
        found = simulate(network, recipe.adapter, recipe.train, planned.batches)
        unread = 0 if self.prepared is not None else network.spec.shape.vocab_size
        longest = max((len(batch.tokens) for batch in planned.batches), default=0)
        holes = holes_are_lost(outline.shape, outline.dtype, self.target.device, longest)
        on_cpu = self.target.device.type == "cpu"
        process = self.held.estimate(found, on_cpu=on_cpu, vocabulary=unread, holes=holes)
        return _Found(recipe, planned, found, process)

    def trial(self, recipe: Recipe, changes: search.Changes) -> search.Trial | None:
        """`run` for the search; None for what the network cannot do (one of one's own need not recompute)."""
        try:
            return self.run(recipe, changes).trial(changes)
        except ModelError:
            return None


def plan(recipe: Recipe, *, memory_bytes: int | None = None) -> Report:
    """Simulate the costliest planned step of the recipe; with `memory_bytes`, look for what fits there.

    Reads no weights. Raises what `train` would raise about the recipe, as far as it can be known without them."""
    config.check_effects(recipe)
    torch.set_num_threads(recipe.model.threads or min(os.cpu_count() or 1, machine.usable_cores()))
    target = _target(recipe)
    kernels.choose(recipe.model.kernels if target.device.type == "cpu" else "eager")
    recipe, parent = with_parent(recipe)
    checkpoint = open_settings(recipe.model.path, allow_pickle=recipe.model.allow_pickle)
    recipe = recipe.model_copy(update={"quant": fitting(recipe.quant, checkpoint)})
    refuse_quant(recipe, checkpoint)
    check_dtype(recipe.train, target.dtype)
    recipe, prepared, why_unknown = _prepare(recipe, checkpoint)
    if prepared is not None:
        check_steps(recipe, prepared)
    planner = _Planner(checkpoint, prepared, target, resident())
    if parent is not None:
        parent.check_function(recipe, planner.network(recipe, {}).build("meta"))
    found = planner.run(recipe, {})
    layers = identify(checkpoint, recipe.model.choice)[1].shape.layers
    answers: list[search.Tried] = []
    now = found.trial({})
    if memory_bytes is not None and not now.fits(memory_bytes):
        facts = _facts(found, prepared, target, layers)
        answers = search.search(facts, memory_bytes, partial(planner.trial, recipe))
    return Report(
        model=recipe.model.path,
        layers=layers,
        dtype=str(target.dtype).removeprefix("torch."),
        quant=recipe.quant,
        device=str(target.device),
        device_here=target.here,
        why_unknown=why_unknown,
        row_tokens=found.recipe.train.row_tokens or 0,
        checkpointing=found.recipe.train.gradient_checkpointing,
        planned=found.planned,
        simulated=found.simulated,
        process=found.process,
        free_bytes=_free(target),
        matmul_flops=speed.matmul_flops(target.dtype, target.device) if target.here else None,
        limit_bytes=memory_bytes,
        now=now,
        answers=answers,
    )


def costliest_step(recipe: Recipe, prepared: Prepared, model: CausalLM) -> tuple[Recipe, Planned]:
    """The step that `plan` simulates, for a model that is loaded; the recipe with its row_tokens decided."""
    recipe = with_row_tokens(recipe, model)
    return recipe, _planned(recipe, model, prepared)


def _target(recipe: Recipe) -> _Target:
    """The device and dtype of the run. A CUDA device need not be here to be planned for."""
    try:
        device = pick_device(recipe.model.device)
    except ModelError:
        if recipe.model.device.split(":")[0] != "cuda":
            raise
        dtype = torch.bfloat16 if recipe.model.dtype == "auto" else getattr(torch, recipe.model.dtype)
        return _Target(torch.device("cuda"), False, dtype)
    return _Target(device, True, pick_dtype(recipe.model.dtype, device))


def _prepare(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Recipe, Prepared | None, str | None]:
    """(the recipe with a max_length that the model allows, its data, why they are not known)."""
    try:
        base = base_of(recipe.model, checkpoint.path, checkpoint)
        recipe, _, _, prepared = prepare(recipe, base)
        return recipe, prepared, None
    except (TokenizerError, DataError, DownloadError) as error:
        _, spec = identify(checkpoint, recipe.model.choice)
        return within_context(recipe, spec.shape.max_position - recipe.adapter.context_taken), None, error.what


def _changed(recipe: Recipe, changes: search.Changes) -> Recipe:
    """The recipe with `section.option` set to other values."""
    for section, values in nested(changes).items():
        # read as a recipe's are: a kind may be named by a word
        read = TrainOptions.model_validate(values) if section == "train" else None
        update = values if read is None else {name: getattr(read, name) for name in values}
        recipe = recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=update)})
    return recipe


def _planned(recipe: Recipe, outline: CausalLM, prepared: Prepared | None) -> Planned:
    """The costliest step; rows of full capacity where the data are not known."""
    options = recipe.train
    assert options.row_tokens is not None
    if prepared is None:
        size = options.examples_per_step  # a row holds conversations of one step only
        conversations = min(size, max(1, options.row_tokens // recipe.data.max_length))
        row = full_row(conversations, recipe.data.max_length)
        return full(row, conversations=conversations, examples_per_step=size, steps=options.max_steps or 0)
    return costliest(
        partial(step_batches, prepared.train, recipe, outline),
        epoch_steps=steps_per_epoch(prepared.foreseen_examples, options.examples_per_step),
        steps=run_steps(recipe, prepared),
        layers=outline.shape.layers,
    )


def _facts(found: _Found, prepared: Prepared | None, target: _Target, layers: int) -> search.Facts:
    recipe = found.recipe
    assert recipe.train.row_tokens is not None
    asked = recipe.train.gradient_checkpointing
    longest = int(prepared.train.lengths.max()) if prepared is not None else recipe.data.max_length
    return search.Facts(
        row_tokens=recipe.train.row_tokens,
        longest=longest,
        layers=layers,
        # layers that keep nothing are none that could be computed twice instead
        twice=layers if asked is True or not recipe.adapter.reaches_layers else int(asked),
        dtype=str(target.dtype).removeprefix("torch."),
        optimizer=_leaner(recipe.train, found.simulated),
        # what goes on from an adapter has its size
        adapter=[_keyed("adapter", one) for one in recipe.adapter.smaller()] if recipe.adapter.path is None else [],
    )


def _leaner(options: TrainOptions, found: Simulated) -> list[search.Changes]:
    """How gradients and the optimizer's state would take less, where they are not small to begin with."""
    if found.by_kind["gradients"] + found.by_kind["optimizer"] < LARGE * found.peak_bytes:
        return []
    made: list[dict[str, Any]] = []
    if not options.optimizer_in_backward:
        made.append({"optimizer_in_backward": True, "max_grad_norm": 0.0})
    if found.by_kind["optimizer"] > SMALL_STATE * found.trainable:
        made.append({**(made[-1] if made else {}), "optim": "adamw_8bit"})
    return [_keyed("train", one) for one in made]


def _keyed(section: str, options: dict[str, Any]) -> search.Changes:
    return {f"{section}.{name}": value for name, value in options.items()}


def _free(target: _Target) -> int | None:
    """Bytes that are free now where the run would be; None where that is not here."""
    if not target.here:
        return None
    return torch.cuda.mem_get_info(target.device)[0] if target.device.type == "cuda" else machine.memory()[1]
