"""Commands on data: data show."""

from __future__ import annotations

from typing import Annotated

import typer

from lorikeet.cli import _command
from lorikeet.cli.run import Overrides, RecipePath


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at what a recipe learns from.")
    group.callback()(_data)  # keeps `show` a word of its own while it is the only command
    _command.add(group, show, "show", "lorikeet data show recipe.yaml -n 2")
    app.add_typer(group, name="data")


def _data() -> None:
    pass


def show(
    recipe: RecipePath,
    overrides: Overrides = None,
    n: Annotated[int, typer.Option("-n", min=1, max=1_000_000, help="How many conversations.")] = 5,
) -> None:
    """Print conversations as a model sees them. Trained tokens are coloured; origin and counts stand above."""
    with _command.loaded(recipe, overrides or []) as loaded:
        from lorikeet import api

        api.show(loaded, n)
