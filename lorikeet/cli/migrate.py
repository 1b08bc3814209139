"""Commands for people who come from elsewhere: import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorikeet.cli import _command


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    _command.add(app, import_, "import", "lorikeet import llama3_lora_sft.yaml -o recipe.yaml")


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A YAML of LLaMA-Factory, Axolotl or TRL, a dataset_info.json, or a .sh script."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Options that win over the file: data.train='[mine.json]'."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The recipe; - prints it.")] = Path("recipe.yaml"),
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", metavar="NAME", help="Only this dataset of those the file lists; repeat for more."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a recipe that is there.")] = False,
) -> None:
    """Write the recipe that another trainer's file amounts to, and list what has no equivalent."""
    from lorikeet.migrate import _recipe

    printed = str(output) == "-"
    made = _recipe.translated(file, dataset or [], overrides or [])
    if printed:
        typer.echo(made.text, nl=False)
    else:
        _recipe.write(made, output, source=file, overwrite=overwrite)
    for line in [f"{file}: {made.system}", *_recipe.listed(made.left)]:
        typer.echo(line, err=printed)
    if not printed:
        typer.echo(f"\nwrote {output}; look at what a model would see: lorikeet data show {output} -n 2")
