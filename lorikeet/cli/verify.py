"""Commands that check: verify merge, verify template, verify invariance, verify resume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lorikeet.cli import _command

RecipeOrRun = Annotated[
    Path, typer.Argument(metavar="RECIPE|RUN", help="A recipe file, or a run's folder.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides, e.g. model.dtype=float32", show_default=False),
]
Certificate = Annotated[
    Path | None, typer.Option("--output", "-o", help="The certificate; by default beside the recipe.")
]


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure whether something is right.")
    _command.add(group, merge, "merge", "lorikeet verify merge merged --run runs/first")
    _command.add(group, template, "template", "lorikeet verify template smollm2-135m")
    _command.add(group, invariance, "invariance", "lorikeet verify invariance recipe.yaml")
    _command.add(group, resume, "resume", "lorikeet verify resume recipe.yaml")
    app.add_typer(group, name="verify")


def template(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, GGUF file or name.", show_default=False)],
    *,
    kind: Annotated[str, typer.Option("--template", help="The kind to compare, as data.template names it.")] = "jinja",
    against: Annotated[
        Path | None, typer.Option("--against", help="A chat template in a file, instead of the model's own.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The certificate.")] = Path(
        "template_certificate.json"
    ),
) -> None:
    """Prove that a model reads from us what its own chat template gives it. Exit code 1 where anything differs.

    Compares ids on conversations that templates trip over; reads no weights."""
    from lorikeet.api import proving

    certificate = proving.verify_template(model, kind=kind, against=against, output=output)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in certificate["counts"].items())
    _show(certificate, counts=counts)
    proving.refuse_different(certificate)


def merge(
    merged: Annotated[Path, typer.Argument(metavar="MERGED", help="A merged folder.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="model.OPTION=VALUE", help="Of both, e.g. model.dtype=float32", show_default=False),
    ] = None,
    *,
    run: Annotated[Path, typer.Option("--run", help="The run or adapter it was merged from.", show_default=False)],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Conversations neither has seen; by default the run's validation data."),
    ] = None,
    max_mean_kl: Annotated[float | None, typer.Option(min=0, help="Mean KL per trained token, nats.")] = None,
    max_kl: Annotated[float | None, typer.Option(min=0, help="KL at any trained token, nats.")] = None,
    max_loss_increase: Annotated[float | None, typer.Option(help="Held-out loss above the trained model's.")] = None,
    min_top1: Annotated[float | None, typer.Option(min=0, max=1, help="Same most likely token, share.")] = None,
    min_same_replies: Annotated[float | None, typer.Option(min=0, max=1, help="Same greedy replies, share.")] = None,
    conversations: Annotated[int, typer.Option(min=1, help="Measure on the first so many.")] = 256,
    prompts: Annotated[int, typer.Option(min=0, help="Of them, so many are answered by both.")] = 50,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of each reply.")] = 64,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The certificate; by default MERGED/certificate.json.")
    ] = None,
    allow_other_base: _command.AllowOtherBase = False,
) -> None:
    """Measure a merged model against what was trained. Writes a certificate; exit code 1 past a limit.

    Limits that are not given are those of the way it was merged."""
    from lorikeet import config
    from lorikeet.api import verifying

    given = {
        "mean_kl": max_mean_kl,
        "max_kl": max_kl,
        "loss_increase": max_loss_increase,
        "top1_agreement": min_top1,
        "same_replies": min_same_replies,
    }
    certificate = verifying.verify_merge(
        merged,
        run,
        data=data or [],
        limits={name: limit for name, limit in given.items() if limit is not None},
        output=output,
        asked=verifying.Asked(conversations, prompts, max_new_tokens),
        model=config.options("model", overrides or [], path=str(run)),
        allow_other_base=allow_other_base,
    )
    _command.print_values(certificate["measured"] | {"certificate": certificate["certificate"]})
    verifying.refuse_failed(certificate)


def invariance(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    *,
    conversations: Annotated[int, typer.Option(min=1, help="Of the training data, so many.")] = 6,
    tokens: Annotated[int, typer.Option(min=32, help="Most tokens that they have together.")] = 384,
    output: Certificate = None,
) -> None:
    """Prove that how a step is computed does not change what it computes. Exit code 1 where it does.

    Accumulated or not, padded, packed, prefixes shared, layers computed twice, loss in chunks, compiled kernels, one
    or two threads: loss and gradients of a few of the recipe's own rows, each way against another."""
    with _command.loaded(recipe, overrides or [], or_run=True) as loaded:
        from lorikeet.api import computing

        file = output or _command.recipe_file(recipe).parent / computing.CERTIFICATE
        certificate = computing.verify_invariance(loaded, output=file, conversations=conversations, tokens=tokens)
    _show(certificate)
    computing.refuse_broken(certificate)


def resume(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    *,
    steps: Annotated[int, typer.Option(min=4, help="The first so many of the recipe.")] = 5,
    kills: Annotated[int, typer.Option(min=1, max=1000, help="How often it is killed.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the moments it is killed at; by default another.")] = None,
    output: Certificate = None,
) -> None:
    """Prove that a run that is killed and gone on with comes to the same. Exit code 1 where it does not.

    The recipe's first steps in one go, and again killed (SIGKILL) at random moments, in a temporary folder: adapter,
    optimizer, losses and what was seen, bit for bit."""
    with _command.loaded(recipe, overrides or [], or_run=True) as loaded:
        from lorikeet.api import interrupting

        file = output or _command.recipe_file(recipe).parent / interrupting.CERTIFICATE
        certificate = interrupting.verify_resume(loaded, output=file, steps=steps, kills=kills, seed=seed)
    _show(certificate)
    interrupting.refuse_differing(certificate)


def _show(certificate: Mapping[str, Any], **values: str) -> None:
    """A certificate's table, and where it lies."""
    for line in certificate["table"]:
        typer.echo(line)
    _command.print_values({**values, "certificate": certificate["certificate"]})
