"""Commands that make and judge a run: train, evaluate, report, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorikeet.cli import _command

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides, e.g. train.learning_rate=1e-4", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    _command.add(app, demo, "demo", "lorikeet demo --output runs/demo --seed 7")
    _command.add(app, train, "train", "lorikeet train recipe.yaml train.learning_rate=1e-4")
    _command.add(app, evaluate, "evaluate", "lorikeet evaluate runs/first")
    _command.add(app, report, "report", "lorikeet report runs/first")


def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete what output_dir holds and start anew.")
    ] = False,
) -> None:
    """Train a model. The same command goes on where a stopped run of the same recipe ended."""
    with _command.loaded(recipe, overrides or []) as loaded:
        from lorikeet import api

        summary = api.train(loaded, overwrite=overwrite)
    _command.print_values(summary)
    _say_next(loaded.output_dir)


def _say_next(run: Path) -> None:
    """On standard error: what can be done with the finished run."""
    from lorikeet.base.log import note

    note(f"\nreport: {run / 'report.html'}; next:")
    note(f"  lorikeet chat {run}")
    note(f"  lorikeet merge {run} {run}-merged")


def evaluate(
    recipe_or_run: Annotated[
        Path, typer.Argument(metavar="RUN|RECIPE", help="A run folder, or a recipe file.", show_default=False)
    ],
    overrides: Overrides = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Evaluate this adapter folder on top of the recipe's model.")
    ] = None,
    allow_other_base: _command.AllowOtherBase = False,
) -> None:
    """Measure a model on held-out conversations: loss, perplexity, token accuracy."""
    path = recipe_or_run / "recipe.yaml" if recipe_or_run.is_dir() else recipe_or_run
    with _command.loaded(path, overrides or []) as loaded:
        from lorikeet import api

        plain_run = recipe_or_run.is_dir() and not overrides
        target = recipe_or_run if plain_run else loaded
        found = api.evaluate(target, adapter=adapter, allow_other_base=allow_other_base)
    _command.print_values(found)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)],
) -> None:
    """Write a run's report.html again. It is made from metrics.jsonl and summary.json."""
    from lorikeet.train.report import write_report

    typer.echo(write_report(run))


def demo(
    output: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes other data.")] = 0,
) -> None:
    """A real model learns a task, from nothing. Takes minutes and no data of yours."""
    from lorikeet.demo.run import run

    run(output, seed)
