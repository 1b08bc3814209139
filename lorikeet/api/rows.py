"""A recipe's prepared examples as rows for its model: those of a step, and those that validate."""

from __future__ import annotations

import torch

from lorikeet.base.nouns import Batch
from lorikeet.config import Recipe
from lorikeet.data.pack import ExampleSource, pack_row, plan_rows, run_step, total_steps
from lorikeet.data.pipeline import Prepared
from lorikeet.models.causal_lm import CausalLM
from lorikeet.train.best import check_reached
from lorikeet.train.capacity import default_row_tokens
from lorikeet.train.optim import check_schedule


def with_row_tokens(recipe: Recipe, model: CausalLM, device: torch.device | None = None) -> Recipe:
    """The recipe with train.row_tokens decided, so that the run's folder says what was used; `device`: whose memory
    decides, where that is not the model's."""
    if recipe.train.row_tokens is not None:
        return recipe
    checkpointing = recipe.train.gradient_checkpointing
    fits = default_row_tokens(model.shape, model.dtype, device or model.device, gradient_checkpointing=checkpointing)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"row_tokens": fits})})


def longest_row(recipe: Recipe, prepared: Prepared) -> int:
    """Tokens of the longest row there may be: a conversation longer than row_tokens has a row of its own."""
    assert recipe.train.row_tokens is not None
    return max(recipe.train.row_tokens, int(prepared.train.lengths.max(initial=0)))


def run_steps(recipe: Recipe, prepared: Prepared) -> int:
    """Steps of the whole run."""
    options = recipe.train
    return total_steps(prepared.epoch_examples, options.examples_per_step, options.num_train_epochs, options.max_steps)


def check_steps(recipe: Recipe, prepared: Prepared) -> None:
    """Raise RecipeError for options that do not fit a run of so many steps."""
    steps = run_steps(recipe, prepared)
    check_reached(recipe.train, recipe.train.eval_steps, steps)
    check_schedule(recipe.train, steps)


def step_batches(examples: ExampleSource, recipe: Recipe, model: CausalLM, step: int) -> list[Batch]:
    """The run's step as micro-batches: a pure function of the step."""
    options = recipe.train
    assert options.row_tokens is not None
    size, capacity, share = options.examples_per_step, options.row_tokens, shares(recipe, model)
    return run_step(examples, step, seed=options.seed, examples_per_step=size, row_tokens=capacity, share=share)


def shares(recipe: Recipe, model: CausalLM) -> bool:
    """Whether conversations of a training step share their prefixes."""
    # the adapter's dropout is drawn for each row, the other draws for each conversation
    drawn = getattr(recipe.adapter, "lora_dropout", 0) > 0 or recipe.train.draws
    return may_share(recipe, model) and not drawn


def may_share(recipe: Recipe, model: CausalLM) -> bool:
    """Whether they could, were nothing drawn."""
    return model.shares_within is None or recipe.data.max_length <= model.shares_within


def validation_rows(recipe: Recipe, prepared: Prepared, model: CausalLM) -> list[Batch] | None:
    """The held-out conversations, packed; None where there are none."""
    capacity, share = recipe.train.row_tokens, may_share(recipe, model)
    if prepared.validation is None:
        return None
    assert capacity is not None
    rows = plan_rows(list(prepared.validation), row_tokens=capacity, share=share)
    return [pack_row(row, share=share) for row in rows]
