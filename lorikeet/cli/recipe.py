"""Commands on the recipe itself: schema."""

from __future__ import annotations

from typing import Annotated

import typer

from lorikeet.cli import _command


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    _command.add(app, schema, "schema", "lorikeet schema > recipe.schema.json")


def schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page of all options instead (docs/options.md).")
    ] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Of a chain for `lorikeet data clean`, instead of a recipe for training.")
    ] = False,
) -> None:
    """Print the JSON schema of a recipe. Editors complete and check YAML with it."""
    import json

    from lorikeet import config
    from lorikeet.base.errors import RecipeError
    from lorikeet.cli.options_page import page
    from lorikeet.data.steps import _recipe

    if clean and markdown:
        raise RecipeError(
            "schema: --markdown and --clean together",
            given="--markdown --clean",
            allowed="one of them: the page of options has those of the steps already",
        )
    if clean:
        typer.echo(json.dumps(_recipe.json_schema(), indent=2))
        return
    typer.echo(page(config.Recipe) if markdown else json.dumps(config.json_schema(), indent=2), nl=not markdown)
