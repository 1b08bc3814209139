"""Commands on adapters: adapters merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorikeet.cli import _command


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Work on adapters without their base.")
    group.callback()(_adapters)  # keeps `merge` a word of its own while it is the only command
    _command.add(group, merge, "merge", "lorikeet adapters merge runs/a runs/b --weights 0.7 0.3 --output both")
    app.add_typer(group, name="adapters")


def _adapters() -> None:
    pass


def merge(
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER...", help="Folders of LoRA adapters, or runs.", show_default=False),
    ],
    weights: Annotated[str, typer.Option("--weights", help="One number for each adapter: 0.7 0.3", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.", show_default=False)],
    combination: Annotated[
        str,
        typer.Option(help="cat: exact, of the summed rank. svd: the nearest of --rank. linear: A's and B's added."),
    ] = "cat",
    rank: Annotated[
        int | None, typer.Option(help="With svd; by default the largest of the adapters'.", show_default=False)
    ] = None,
) -> None:
    """Make one LoRA adapter of several: the weighted sum of their updates. They must belong to one base."""
    from lorikeet.adapters._combine import combine

    numbers = [word for word in adapters if _number(word) is not None and not Path(word).exists()]
    folders = [Path(word) for word in adapters if word not in numbers]
    said = [*weights.replace(",", " ").split(), *numbers]
    found = combine(folders, [_weight(word) for word in said], output, way=combination, rank=rank)
    _command.print_values(found)


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _weight(word: str) -> float:
    from lorikeet.base.errors import RecipeError

    number = _number(word)
    if number is None:
        raise RecipeError("--weights: not a number", given=word, allowed="one number for each adapter: 0.7 0.3")
    return number
