"""Commands that make and judge a run: train, evaluate, report, demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorikeet.cli import _command

if TYPE_CHECKING:
    from lorikeet.config import Recipe

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
    from_run: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Begin a new run with what RUN has learned: more epochs, more data, another schedule. Without RECIPE, "
            "by RUN's own.",
        ),
    ] = None,
    force_resume: Annotated[
        bool,
        typer.Option("--force-resume", help="Go on although something differs that decides numbers. Is written down."),
    ] = False,
    stop_after: Annotated[
        int | None, typer.Option(min=1, metavar="STEP", help="Save and stop behind this step.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="In a process that outlives the terminal; its log is RUN/train.log.")
    ] = False,
) -> None:
    """Train a model. The same command goes on where a stopped run of the same recipe ended."""
    words = overrides or []
    if from_run is not None:
        from lorikeet.api.continuing import words_from

        recipe, words = words_from(from_run, recipe, words)
    with _command.loaded(recipe, words) as loaded:
        if detach:
            flags = ["--overwrite"] * overwrite + ["--force-resume"] * force_resume
            flags += [] if stop_after is None else [f"--stop-after={stop_after}"]
            train_detached(["train", str(recipe), *words, *flags], loaded.output_dir)
        else:
            train_here(loaded, overwrite=overwrite, force_resume=force_resume, stop_after=stop_after)


def train_here(recipe: Recipe, *, overwrite: bool, force_resume: bool = False, stop_after: int | None = None) -> None:
    """Train in this process, and say what came out."""
    from lorikeet import api

    summary = api.train(recipe, overwrite=overwrite, force_resume=force_resume, stop_after=stop_after)
    _command.print_values(summary)
    _say_next(recipe)


def train_detached(arguments: Sequence[str], run: Path) -> None:
    """Run `lorikeet ARGUMENTS`, which trains into `run`, in a process of its own, and say how to reach it."""
    from lorikeet.base.log import note
    from lorikeet.cli import _process

    process, code = _process.detach(arguments, run)
    if code:
        raise typer.Exit(code)
    _command.print_values({"process": process, "run": run, "log": run / _process.LOG})
    note(f"\nto see it:   lorikeet runs watch {run}")
    note(f"to stop it:  lorikeet runs stop {run}")


def _say_next(recipe: Recipe) -> None:
    """On standard error: what can be done with the finished run."""
    from lorikeet.base.log import note

    run, folds = recipe.output_dir, recipe.adapter.merge_refusal is None
    note(f"\nreport: {run / 'report.html'}; next:")
    note(f"  lorikeet chat {run}")
    note(f"  lorikeet merge {run} {run}-merged{'' if folds else ' --keep-adapter'}")


def evaluate(
    recipe_or_run: Annotated[
        Path, typer.Argument(metavar="RUN|RECIPE", help="A run folder, or a recipe file.", show_default=False)
    ],
    overrides: Overrides = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Evaluate this adapter folder on top of the recipe's model.")
    ] = None,
    replies: Annotated[
        Path | None,
        typer.Option(help="Answer the validation prompts too, into this file, and measure evaluate.metrics on them."),
    ] = None,
    detail: Annotated[bool, typer.Option("--detail", help="Also by role and by place in the reply.")] = False,
    allow_other_base: _command.AllowOtherBase = False,
) -> None:
    """Measure a model on held-out conversations: loss, perplexity, token accuracy, and scores of its replies."""
    with _command.loaded(recipe_or_run, overrides or [], or_run=True) as loaded:
        from lorikeet import api
        from lorikeet.api import evaluating
        from lorikeet.train.state import trained_adapter

        if recipe_or_run.is_dir() and adapter is None:
            adapter = trained_adapter(recipe_or_run)
        found = api.evaluate(loaded, adapter=adapter, allow_other_base=allow_other_base, replies=replies, detail=detail)
    _command.print_values(found)
    for line in evaluating.table(found):
        typer.echo(line)


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
