"""Commands on data: data show, data check, data ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorikeet.cli import _command, data_clean
from lorikeet.cli.run import Overrides, RecipePath

if TYPE_CHECKING:
    from lorikeet.config import Recipe
    from lorikeet.data.checking import Report
    from lorikeet.data.pipeline import DataOptions


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Clean data, and look at what a recipe learns from."
    )
    _command.add(group, show, "show", "lorikeet data show recipe.yaml -n 2")
    _command.add(group, check, "check", "lorikeet data check recipe.yaml")
    _command.add(group, ledger, "ledger", "lorikeet data ledger recipe.yaml -o ledger.jsonl")
    data_clean.add(group)
    app.add_typer(group, name="data")


def show(
    recipe: RecipePath,
    overrides: Overrides = None,
    n: Annotated[int, typer.Option("-n", min=1, max=1_000_000, help="How many conversations.")] = 5,
    row: Annotated[
        list[int] | None,
        typer.Option("--row", min=0, help="This row of each file instead, counted from 0; may be given again."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write an .html or .svg file instead.", show_default=False)
    ] = None,
) -> None:
    """Print conversations as a model sees them. Trained tokens are coloured; origin and counts stand above.

    In an .html file each token says which characters of which message it is."""
    with _command.loaded(recipe, overrides or [], makes_run=False) as loaded:
        from lorikeet import api

        api.show(loaded, n, rows=row or [], output=output)


def check(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE|FILE...",
            help="A recipe, or data files; KEY=VALUE of the recipe (data.OPTION=VALUE for files) may stand among them.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="For files: check the labels that this model would learn, too."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this check (or your own .py file); may be given again.")
    ] = None,
    without: Annotated[list[str] | None, typer.Option("--without", help="Not this check; may be given again.")] = None,
    n: Annotated[int, typer.Option("-n", min=0, help="Findings of each check that are printed.")] = 5,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Write the histogram of lengths to this .svg file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything that was found as JSON.")] = False,
) -> None:
    """Look for what makes labels wrong, row by row. Exit code 1 where there are errors; warnings are counted."""
    import json

    from lorikeet import api
    from lorikeet.base.errors import CheckFailed

    report = api.check(_data_of(words, model), only=only or [], without=without or [], picture=picture)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _print_report(report, n)
    if report.count("error"):
        worst = {one.name: one.counts["error"] for one in report.checks if one.counts["error"]}
        raise CheckFailed(
            "data check: the data have errors",
            given=", ".join(f"{name} {count}" for name, count in worst.items()),
            try_="the fixes above; lorikeet data show RECIPE --row N shows a row",
        )


def _data_of(words: list[str], model: str | None) -> Recipe | DataOptions:
    """The recipe in a file, one made of a model and data files, or the options of files alone."""
    import re

    from lorikeet import config
    from lorikeet.base.errors import RecipeError
    from lorikeet.data.pipeline import DataOptions

    overrides = [word for word in words if re.match(r"[a-z_]+(\.[a-z_]+)*=", word)]
    files = [word for word in words if word not in overrides]
    recipes = [file for file in files if Path(file).suffix in (".yaml", ".yml")]
    if recipes:
        if len(files) > 1 or model is not None:
            raise RecipeError(
                "data check: a recipe names its data and its model itself",
                given=f"{recipes[0]} and {model or next(file for file in files if file != recipes[0])}",
                allowed="a recipe alone, or files and perhaps --model",
            )
        return config.load(Path(recipes[0]), overrides, makes_run=False)
    if not files:
        raise RecipeError(
            "data check: nothing to check", given=" ".join(words), allowed="a recipe, or data files", try_="mine.json"
        )
    if model is None:
        return DataOptions.model_validate({**config.options("data", overrides, train=files), "train": files})
    said = {"output_dir": "unused", "model": {"path": model}, "data": {"train": files}}
    return config.parse(said, overrides, name=config.COMMAND_LINE)


def _print_report(report: Report, most: int) -> None:
    from lorikeet.data import checking, histogram

    for line in checking.as_text(report, most):
        typer.echo(line)
    lengths, languages = report.facts("lengths"), report.facts("languages")
    if lengths is not None and lengths["rows"]:
        for line in histogram.as_text(lengths):
            typer.echo(line)
    if languages is not None and languages["replies"]:
        shares = (f"{script} {count:,}" for script, count in languages["replies"].items())
        typer.echo(f"replies by script: {', '.join(shares)}")
        if "languages" in languages:
            told = {"unknown": "too short or mixed to tell"}
            counts = (f"{told.get(code, code)} {count:,}" for code, count in languages["languages"].items())
            typer.echo(f"replies by language: {', '.join(counts)}")
    typer.echo(checking.closing(report))


def ledger(
    recipe: RecipePath,
    overrides: Overrides = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .jsonl file to write; its summary comes beside it.")
    ] = Path("ledger.jsonl"),
) -> None:
    """Write where every trained token comes from, a line for each row: message and range of characters."""
    with _command.loaded(recipe, overrides or [], makes_run=False) as loaded:
        from lorikeet import api

        summary = api.ledger(loaded, output)
    flat = {name: value for name, value in summary.items() if name not in ("columns", "characters")}
    _command.print_values({**flat, **{f"characters_{name}": count for name, count in summary["characters"].items()}})
