"""Training that goes on from an adapter that is there already: `adapter.path`.

The folder says what the adapter is (rank, factor, linears); the recipe may say how it goes on (dropout, learning
rates), and whatever it says of the first has to be what the folder says. The base must be the one it was trained on,
kept in the same way. The new run starts at step 0 and names the adapter it came from by its hash.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorikeet import config
from lorikeet.adapters import _storage as storage
from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._new_tokens import tokens_of
from lorikeet.api.base import Base
from lorikeet.base.errors import CheckpointError, RecipeError
from lorikeet.base.files import sha256_file
from lorikeet.base.log import note
from lorikeet.base.option_fields import as_yaml
from lorikeet.config import Recipe
from lorikeet.models.causal_lm import CausalLM
from lorikeet.train import state as run_state


@dataclass(frozen=True)
class Parent:
    """The adapter that a run goes on from, and the options its folder says."""

    folder: Path
    options: Adapter

    @property
    def sha256(self) -> str:
        """Of its tensors."""
        return sha256_file(self.folder / storage.WEIGHTS)

    def as_dict(self) -> dict[str, str]:
        """For the summary of a run that goes on from it."""
        return {"adapter": str(self.folder), "sha256": self.sha256}

    def check_base(self, recipe: Recipe, base: Base) -> None:
        """Raise CheckpointError where it was trained on another base, or on one that was kept in another way, and
        RecipeError where the recipe adds other tokens."""
        identity = storage.read_identity(self.folder)
        if found := storage.differences(identity, base.checkpoint, recipe.quant, self.folder):
            raise CheckpointError(
                f"adapter.path: the adapter in {self.folder} was trained on {' and '.join(found)}",
                given="; ".join(here for here, _ in found.values()),
                allowed="; ".join(there for _, there in found.values()),
                try_="the model and quant it was trained with, or an adapter of this model",
            )
        if tokens_of(self.options) != base.new_tokens:
            there = identity.get("add_tokens", tokens_of(self.options))
            raise RecipeError(
                f"model.add_tokens: differs from what the adapter in {self.folder} was trained with",
                given=recipe.model.add_tokens,
                allowed=there or "none",
                try_=f"model.add_tokens={as_yaml(there) if isinstance(there, list) else '[]'}",
            )

    def check_function(self, recipe: Recipe, model: CausalLM) -> None:
        """Raise RecipeError where options of the recipe would make another function of the same tensors."""
        ours, theirs = recipe.adapter.function(model), self.options.function(model)
        for option in theirs:
            if ours[option] != theirs[option]:
                raise RecipeError(
                    f"adapter.{option}: differs from the adapter in {self.folder}",
                    given=_short(ours[option]),
                    allowed=_short(theirs[option]),
                    try_=f"leave adapter.{option} out: the folder says it",
                )

    def fill(self, recipe: Recipe, model: CausalLM) -> None:
        """Put its tensors into the attached adapter. Raises CheckpointError for a broken folder."""
        _, tensors, _ = storage.read_adapter(self.folder)
        storage.fill(model, recipe.adapter, tensors, source=self.folder)
        note(f"going on from the adapter in {self.folder}")


def with_parent(recipe: Recipe) -> tuple[Recipe, Parent | None]:
    """The recipe with the options of the adapter it goes on from, and that adapter; None where it starts anew.

    Raises RecipeError for one of another kind, or options that would have no effect, CheckpointError for a folder
    without an adapter."""
    asked = recipe.adapter
    if asked.path is None:
        return recipe, None
    folder = run_state.trained_adapter(asked.path) if (asked.path / "recipe.yaml").is_file() else asked.path
    found = storage.read_options(folder)
    if (kind := _kind(found)) != _kind(asked):
        raise RecipeError(
            f"adapter.kind: the adapter in {folder} is of another kind",
            given=_kind(asked),
            allowed=kind,
            try_=f"adapter.kind={kind}",
        )
    for option in config.written(asked) & set(asked.only_at_start):
        if getattr(asked, option) != getattr(found, option):
            raise RecipeError(
                f"adapter.{option}: has no effect beside adapter.path, which has begun already",
                given=getattr(asked, option),
                try_=f"leave adapter.{option} out",
            )
    said = {name: getattr(asked, name) for name in asked.model_fields_set.difference(asked.only_at_start)}
    return recipe.model_copy(update={"adapter": found.model_copy(update=said)}), Parent(folder, found)


def words_from(run: Path, recipe: Path, overrides: Sequence[str]) -> tuple[Path, list[str]]:
    """What `train --from RUN RECIPE KEY=VALUE...` means: a recipe file, and overrides by which a new run starts from
    RUN's adapter. Where RECIPE is an override too, the recipe is RUN's own.

    Raises CheckpointError where RUN has no adapter, RecipeError where RECIPE starts from another one, or where the new
    run would lie in RUN itself."""
    own = "=" in str(recipe) and not recipe.exists()
    if own:
        recipe, overrides = run / "recipe.yaml", [str(recipe), *overrides]
    folder = run_state.trained_adapter(run) if (run / "recipe.yaml").is_file() else run
    kind, values = _kind(storage.read_options(folder)), config.tree(recipe, overrides).values
    section = values.get("adapter")
    said: dict[str, Any] = section if isinstance(section, dict) else {}
    if not own and said.get("path") not in (None, str(run), str(run.resolve())):
        raise RecipeError(
            "adapter.path and --from say different things", given=said["path"], allowed=str(run), try_="one of the two"
        )
    output = values.get("output_dir")
    if isinstance(output, str) and Path(output).resolve() == run.resolve():
        raise RecipeError(
            "output_dir: is the run that it starts from, and a new run has a folder of its own",
            given=output,
            try_=f"output_dir={run}-2",
        )
    kinds = [] if "kind" in said or isinstance(section, str) else [f"adapter.kind={json.dumps(kind)}"]
    return recipe, [*overrides, *kinds, f"adapter.path={json.dumps(str(run))}"]


def _kind(adapter: Adapter) -> str:
    return str(adapter.model_dump().get("kind"))


def _short(value: Any) -> str:
    """A mapping of one value for all linears is that value."""
    if isinstance(value, dict) and len(set(map(str, value.values()))) == 1:
        value = next(iter(value.values()))
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def attach_new(recipe: Recipe, model: CausalLM, parent: Parent | None) -> None:
    """Put what trains on the model, as it begins."""
    if parent is not None:
        parent.check_function(recipe, model)
    recipe.adapter.attach(model, seed=recipe.train.seed)
    if parent is not None:
        parent.fill(recipe, model)
