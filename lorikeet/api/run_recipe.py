"""The recipe in a run's folder, for whoever opens the folder and does not train by it: chat, serve, merge, evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lorikeet import config
from lorikeet.base import known_code
from lorikeet.base.errors import RecipeError
from lorikeet.base.option_errors import leaves
from lorikeet.base.yaml_lines import Tree
from lorikeet.config import Recipe

FILE = "recipe.yaml"


def load_run(folder: Path, overrides: Sequence[str] = (), *, model: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in `folder`. A run may come from elsewhere, so code that its recipe names runs only where it is known
    (base/known_code.py), or where a person says model.allow_code=true: in `overrides`, or in `model` (other options of
    the section that the person said). Raises RecipeError where it would have to run other code.

    What the folder says of trust in a model's own code does not count either; `load` then tells what is missing."""
    source = config.tree(folder / FILE, overrides)
    said = _said(source) | dict(model or {})
    allowed = said.get("allow_code") is True
    with nullcontext() if allowed else known_code.only_known():
        try:
            recipe = config.load(folder / FILE, overrides)
            if recipe.model.family is not None and "family" not in said:
                known_code.check(recipe.model.family)
        except RecipeError as error:
            raise config.located(error, source) from None
    changed = {"allow_code": False}  # it is said of the folder, and not a part of the recipe
    if not allowed and "trust_remote_code" not in said:
        changed["trust_remote_code"] = False
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=changed)})


def _said(source: Tree) -> dict[str, Any]:
    """The options of the section `model` that stand on the command line."""
    leaf = [(key, value) for key, value in leaves(source.values) if len(key) == 2 and key[0] == "model"]
    return {str(key[1]): value for key, value in leaf if source.place(key) == config.COMMAND_LINE}
