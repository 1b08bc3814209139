"""The command plan: what training will take, before the weights are downloaded."""

from __future__ import annotations

from typing import Annotated

import typer

from lorikeet.cli import _command
from lorikeet.cli.run import Overrides, RecipePath


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    _command.add(app, plan, "plan", "lorikeet plan recipe.yaml --memory 8GiB")


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="What must suffice, e.g. 8GiB: says what fits.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what training will take: memory by kind, the peak, time. Runs the costliest step without numbers or weights.

    With --memory, says which lines of the recipe make it fit, and exits with 1 where none does."""
    limit = None if memory is None else _bytes(memory)
    with _command.loaded(recipe, overrides or []) as loaded:
        from lorikeet.api.planning import plan as find

        found = find(loaded, memory_bytes=limit)
    if json:
        from json import dumps

        typer.echo(dumps(found.as_dict(), indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        from lorikeet.plan.report import render

        Console(highlight=False).print(render(found))
    if found.fits is False:
        raise _nothing_fits(memory, found.now.bytes)


def _bytes(size: str) -> int:
    """`8GiB`, `8 GB`, `8g` and `8192MiB` as bytes. Raises RecipeError."""
    from lorikeet.base.amounts import size_bytes
    from lorikeet.base.errors import RecipeError

    found = size_bytes(size)
    if found is None or found < 1 << 20:
        raise RecipeError(
            "--memory: not an amount of memory",
            given=size,
            allowed="a number with GiB, GB, MiB or MB, at least 1 MiB",
            try_="--memory 8GiB",
        )
    return found


def _nothing_fits(memory: str | None, needed: int) -> Exception:
    from lorikeet.base.errors import CheckFailed
    from lorikeet.plan.report import mib

    return CheckFailed(
        f"nothing that was tried fits {memory}",
        given=f"{mib(needed)} as the recipe is",
        try_="a smaller model: docs/models.md lists what fits 8, 16 and 24 GiB",
    )
