"""A model on disk with its tokenizer, an adapter put on it, and a recipe's data prepared for it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorikeet import kernels
from lorikeet.adapters import _storage as storage
from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._new_tokens import NewTokens, around
from lorikeet.base.errors import RecipeError, TokenizerError
from lorikeet.base.heap import give_back
from lorikeet.base.log import note
from lorikeet.base.machine import usable_cores
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.checkpoints.download import resolve
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.config import Recipe
from lorikeet.data import pipeline
from lorikeet.data.pipeline import LEAST_LENGTH, Prepared
from lorikeet.data.templates._contract import Template
from lorikeet.kernels import allocator
from lorikeet.models.causal_lm import CausalLM, Shape
from lorikeet.models.load import ModelOptions, identify, load, pick_device, pick_dtype
from lorikeet.models.new_rows import grow
from lorikeet.models.stored import MAKES_DENSE, fitting, stored_quant
from lorikeet.quant._contract import Quant
from lorikeet.tokens._contract import Tokenizer
from lorikeet.tokens.open import open_tokenizer


@dataclass(frozen=True)
class Base:
    """A model on disk with its tokenizer, before any weight is read."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    shape: Shape  # with the new tokens
    options: ModelOptions
    new_tokens: NewTokens | None = None  # of options.add_tokens

    def load(self, quant: Quant) -> CausalLM:
        """Read the weights."""
        device = pick_device(self.options.device)
        allocator.holds(device)  # from the first tensor on
        dtype = pick_dtype(self.options.dtype, device)
        model = load(self.checkpoint, quant, dtype=dtype, device=device, family=self.options.choice)
        if self.new_tokens is not None:
            grow(model, *self.new_tokens)
        give_back()  # what the tokenizer and the tensors as read took
        return model


def open_base(options: ModelOptions) -> Base:
    """Find the model (downloading an alias or hub name) and check that its tokenizer fits."""
    torch.set_num_threads(options.threads or min(os.cpu_count() or 1, usable_cores()))
    kernels.choose(options.kernels)
    pick_device(options.device)  # one that is not there is told before anything is downloaded
    path = resolve(options.path, allow_pickle=options.allow_pickle)
    return base_of(options, path, open_checkpoint(path, allow_pickle=options.allow_pickle))


def base_of(options: ModelOptions, path: Path, checkpoint: Checkpoint) -> Base:
    """The model of `checkpoint`, which is at `path` (as is its tokenizer). Raises TokenizerError for another's."""
    _, spec = identify(checkpoint, options.choice)
    tokenizer = open_tokenizer(path, checkpoint)
    if tokenizer.vocab_size > spec.shape.vocab_size:
        raise TokenizerError(
            "the tokenizer has more tokens than the model",
            given=f"{tokenizer.vocab_size} tokens in the tokenizer",
            allowed=f"at most {spec.shape.vocab_size}",
            try_="the tokenizer that belongs to the model",
        )
    if not options.add_tokens:
        return Base(checkpoint, tokenizer, spec.shape, options)
    new = NewTokens(tokenizer.vocab_size, len(options.add_tokens))
    tokenizer = tokenizer.with_tokens(options.add_tokens)
    shape = replace(spec.shape, vocab_size=max(spec.shape.vocab_size, tokenizer.vocab_size))
    return Base(checkpoint, tokenizer, shape, options, new)


def prepare(recipe: Recipe, base: Base | None = None) -> tuple[Recipe, Base, Template, Prepared]:
    """Read, render and store the recipe's data. The recipe comes back with a `max_length` that the model allows, and a
    `quant` that says how the model is stored, where it is quantised."""
    base = base or open_base(recipe.model)
    recipe = recipe.model_copy(update={"quant": fitting(recipe.quant, base.checkpoint)})
    adapter = around(recipe.adapter.with_tokenizer(base.tokenizer), base.new_tokens)
    recipe = recipe.model_copy(update={"adapter": adapter})
    template = recipe.data.template.bind(base.tokenizer)
    recipe = within_context(recipe, base.shape.max_position - recipe.adapter.context_taken)
    return recipe, base, template, pipeline.prepare(recipe.data, base.tokenizer, template, seed=recipe.train.seed)


def refuse_quant(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Raise RecipeError where the recipe's adapter cannot train over weights that are kept as its `quant` says."""
    refusal = recipe.adapter.quant_refusal(recipe.quant)
    if refusal is not None:
        raise RecipeError(
            f"quant.kind: {refusal}",
            given=recipe.quant.model_dump()["kind"],
            allowed="none",
            try_="quant=none" if stored_quant(checkpoint) is None else MAKES_DENSE,
        )


def within_context(recipe: Recipe, context: int) -> Recipe:
    """A max_length that nobody wrote is lowered to the model's context. Raises RecipeError for one that was written."""
    if recipe.data.max_length <= context:
        return recipe
    taken = recipe.adapter.context_taken
    if context < LEAST_LENGTH <= context + taken:
        raise RecipeError(
            "adapter.num_virtual_tokens: they leave no room for a text in the model's context",
            given=taken,
            allowed=f"at most {context + taken - LEAST_LENGTH}",
            try_="adapter.num_virtual_tokens=32",
        )
    if "max_length" in recipe.data.model_fields_set or context < LEAST_LENGTH:
        raise RecipeError(
            "data.max_length: beyond the model's context",
            given=recipe.data.max_length,
            allowed=f"at most {context}",
            try_=f"data.max_length={context}" if context >= LEAST_LENGTH else "a model with a longer context",
        )
    note(f"data.max_length is {context}, the model's context")
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_length": context})})


def attach(
    model: CausalLM, base: Base, folder: Path, quant: Quant, *, allow_other_base: bool = False
) -> tuple[Adapter, dict[str, Any]]:
    """Put the adapter in `folder` on the model: (the adapter, its identity). Raises CheckpointError for one that was
    trained on another base, or on one that was kept otherwise than `quant`, unless `allow_other_base`."""
    adapter, tensors, identity = storage.read_adapter(folder)
    storage.check_base(identity, base.checkpoint, quant, folder, allow_other=allow_other_base)
    adapter.attach(model, seed=0)
    storage.fill(model, adapter, tensors, source=folder)
    return adapter, identity
