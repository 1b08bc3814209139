"""Commands that clean data: data clean, data diff."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from lorikeet.cli import _command


def add(group: typer.Typer) -> None:
    """Add this file's commands to the group `data`."""
    example = "lorikeet data clean sg_1.json sg_2.json -o clean.jsonl --recipe examples/sharegpt_clean.yaml"
    _command.add(group, clean, "clean", example)
    _command.add(group, diff, "diff", "lorikeet data diff before.jsonl clean.jsonl")


def clean(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IN...] [STEP.OPTION=VALUE...]",
            help="Files, folders, URLs or hub data sets; and options of steps, e.g. dedupe.near=0.8",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write: .jsonl or .json.", show_default=False)
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option("--steps", help="Steps in their order: roles,html_to_markdown,dedupe", show_default=False),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", "-r", help="A YAML file with input, output and steps.", show_default=False),
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="How rows read; by default found out.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; by default one a core.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make an output that is there again.")] = False,
) -> None:
    """Clean data with a chain of steps. Every row that is left out stands in NAME.rejected.jsonl with its reason."""
    from lorikeet.data import clean as cleaning
    from lorikeet.data.steps import _recipe

    overrides = [word for word in words or [] if re.match(r"[a-z_]+\.[a-z_]+=", word)]
    inputs = [word for word in words or [] if word not in overrides]
    said = {"input": inputs or None, "output": output and str(output), "format": format, "workers": workers}
    options = _recipe.options(recipe, {name: value for name, value in said.items() if value}, steps, overrides)
    report = cleaning.clean(options, overwrite=overwrite)
    for line in report.lines():
        typer.echo(line)


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A file of rows.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.", show_default=False)],
    n: Annotated[int, typer.Option("-n", min=0, max=1_000_000, help="Show so many changed rows.")] = 3,
) -> None:
    """Compare two files of rows. For rows that only one of two cleaned files has, the reasons are counted."""
    from lorikeet.data import diff as comparing

    found = comparing.compare(a, b)
    for line in found.lines():
        typer.echo(line)
    for _, _, lines in comparing.examples(a, b, found.changed[:n]):
        typer.echo("\n" + "\n".join(lines))
