"""The verb evaluate: what a model, with or without an adapter, comes to on held-out conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lorikeet.adapters import _storage as storage
from lorikeet.api.base import Base, attach, prepare
from lorikeet.api.rows import validation_rows, with_row_tokens
from lorikeet.api.run_recipe import load_run
from lorikeet.base.errors import RecipeError
from lorikeet.base.files import sha256_file
from lorikeet.base.log import note
from lorikeet.base.nouns import Batch, Example
from lorikeet.config import Recipe
from lorikeet.data import sources
from lorikeet.data.pack import pack_row, plan_rows
from lorikeet.data.roles import ROLES, asked_of, roles_of
from lorikeet.data.templates._contract import Template
from lorikeet.infer.answers import answers_to_file, finish
from lorikeet.infer.engine import Engine
from lorikeet.infer.predict import check_output
from lorikeet.infer.scores import check_installed, score
from lorikeet.models.causal_lm import CausalLM
from lorikeet.train.detail import PLACES, places, tally
from lorikeet.train.evaluate import evaluate as evaluate_batches
from lorikeet.train.metrics import peak_rss_bytes
from lorikeet.train.state import trained_adapter

USUAL = ("exact_match", "ended")  # of replies, where the recipe names no metrics
FEW = 0.9  # below it, a share of replies that end by themselves is remarked on


def evaluate(
    target: Recipe | Path,
    *,
    adapter: Path | None = None,
    allow_other_base: bool = False,
    replies: Path | None = None,
    detail: bool = False,
) -> dict[str, Any]:
    """Loss, perplexity and token accuracy on a recipe's validation data, with the run's adapter (or `adapter`).

    `replies`: also answer the validation prompts, write a row for each to this file (the same command goes on where it
    was stopped) and measure evaluate.metrics on them. `detail`: also loss and accuracy by role and by place in the
    reply. An adapter of another base or quantisation is refused unless `allow_other_base` (its shapes must fit all the
    same). A bare recipe is evaluated with its run's adapter where there is one, else the base alone."""
    recipe = load_run(target) if isinstance(target, Path) else target
    if sources.validation_of(recipe.data) is None:
        raise RecipeError("data.validation: not set, so there is nothing to evaluate on", try_="data.validation=0.1")
    metrics = recipe.evaluate.metrics or USUAL
    if replies is not None:
        check_output(replies, [str(one) for one in recipe.data.train])
        check_installed(metrics)
    if isinstance(target, Path) and adapter is None:
        adapter = trained_adapter(target)  # its recipe may name a folder that it was copied from
    recipe, base, template, prepared = prepare(recipe)
    assert prepared.validation is not None
    model = base.load(recipe.quant)
    recipe = with_row_tokens(recipe, model)
    chosen = adapter or recipe.output_dir / "adapter"
    weights = base.checkpoint.fingerprint()
    if used := adapter is not None or chosen.exists():
        attach(model, base, chosen, recipe.quant, allow_other_base=allow_other_base)
        weights += sha256_file(chosen / storage.WEIGHTS)
    rows = validation_rows(recipe, prepared, model)
    assert rows is not None
    found: dict[str, Any] = {"adapter": str(chosen) if used else "none"}
    measured = evaluate_batches(model, rows).as_row()
    found |= {"eval_loss" if name == "loss" else name: value for name, value in measured.items()}
    if replies is not None:
        engine = Engine(model, base.tokenizer, template, f"{weights} {model.dtype}")
        found |= _answered(engine, recipe, prepared.validation, replies, metrics)
    if detail:
        found |= _detail(recipe, base, template, model, prepared.validation)
    return found | {"conversations": len(prepared.validation), "peak_rss_bytes": peak_rss_bytes()}


def _answered(
    engine: Engine, recipe: Recipe, examples: Sequence[Example], output: Path, metrics: Sequence[str]
) -> dict[str, Any]:
    first = [examples[i] for i in range(min(recipe.evaluate.prompts, len(examples)))]
    asked = asked_of(first, recipe.data, engine.tokenizer, engine.template)
    rows = answers_to_file(engine, asked, output, recipe.generate)
    found = score(rows, metrics)
    finish(output, rows)
    ended = sum(row["finish_reason"] == "stop" for row in rows)
    if ended < FEW * len(rows):
        note(
            f"{len(rows) - ended} of {len(rows)} replies did not end by themselves within generate.max_new_tokens="
            f"{recipe.generate.max_new_tokens}: longer ones are cut, or the model has not learned to stop"
        )
    return {**found, "replies": len(rows), "output": str(output)}


def _detail(
    recipe: Recipe, base: Base, template: Template, model: CausalLM, examples: Sequence[Example]
) -> dict[str, Any]:
    """by_role, over every token of the conversations, and by_place, over the trained ones."""
    known = list(roles_of(examples, recipe.data, base.tokenizer, template))
    if missing := sum(roles is None for roles in known):
        note(f"by role: {missing} of {len(known)} conversations were cut otherwise, and are left out")
    whole = [(_all(one), roles) for one, roles in zip(examples, known) if roles is not None]
    trained = [(one, places(one.weights)) for one in examples]
    return {
        "by_role": tally(model, _rows(recipe, whole), ROLES),
        "by_place": tally(model, _rows(recipe, trained), PLACES),
    }


def _all(example: Example) -> Example:
    """Every token counts, but the first."""
    weights = np.ones_like(example.weights)
    weights[0] = 0
    return replace(example, weights=weights)


def _rows(recipe: Recipe, examples: Sequence[tuple[Example, np.ndarray]]) -> Iterator[tuple[Batch, np.ndarray]]:
    """Rows without shared prefixes, with the group of each prediction."""
    assert recipe.train.row_tokens is not None
    groups = {id(example): group for example, group in examples}
    for row in plan_rows([one for one, _ in examples], row_tokens=recipe.train.row_tokens, share=False):
        yield pack_row(row, share=False), np.concatenate([groups[id(one)][one.weights > 0] for one in row])


def table(found: dict[str, Any]) -> list[str]:
    """by_role and by_place for people."""
    lines = []
    for title in ("by_role", "by_place"):
        if title in found:
            lines.append(f"{title:<12}{'tokens':>10}{'loss':>10}{'accuracy':>10}")
            for name, one in found[title].items():
                lines.append(f"{name:<12}{one['tokens']:>10,}{one['loss']:>10.4f}{one['accuracy']:>10.1%}")
    return lines
