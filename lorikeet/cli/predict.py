"""The command predict: a file of prompts answered here, or by a server."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lorikeet.cli import _command

Model = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|MODEL",
        help="A run folder, a model folder, a .gguf file, or an alias; with --api what the server calls its model.",
        show_default=False,
    ),
]
Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE",
        help="Prompts, in any data format; generate.OPTION=VALUE may stand among them.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    _command.add(app, predict, "predict", "lorikeet predict runs/first prompts.jsonl --output replies.jsonl")


def predict(
    model: Model,
    inputs: Inputs,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .jsonl file to write.", show_default=False)],
    guide: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What every reply must be: a JSON schema (.json) or a grammar (.lark)."),
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="Where rows have references: of exact_match, ended, rouge and chrf.")
    ] = "exact_match,ended",
    api: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask this server: OpenAI's API, or TGI's. Its key is in OPENAI_API_KEY."),
    ] = None,
    render: Annotated[
        str | None,
        typer.Option(metavar="RUN|MODEL", help="With --api: whose template renders, for addresses that take text."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="With --api: questions at once.")] = 16,
    retries: Annotated[int, typer.Option(min=0, max=100, help="With --api: of each question, if it may help.")] = 6,
    timeout: Annotated[float, typer.Option(min=0.01, max=86_400, help="With --api: seconds for one reply.")] = 600.0,
    allow_other_base: _command.AllowOtherBase = False,
) -> None:
    """Answer every prompt of a file. Each reply stands beside its reference, if there is one.

    What was interrupted goes on where it was when the same command is given again."""
    _check_way(locals())
    from lorikeet import api as verbs
    from lorikeet.base.errors import DataError

    files, overrides = _command.split_options(inputs)
    if not files:
        raise DataError(
            "no file with prompts was named", try_="lorikeet predict RUN prompts.jsonl --output replies.jsonl"
        )
    overrides += [f"generate.guide={json.dumps(str(guide))}"] if guide is not None else []
    measured = [name for name in metrics.replace(",", " ").split() if name]
    verbs.asking.check_metrics(measured)
    about, replies = _command.of_model_and_replies(model, overrides)
    if api is None:
        found = verbs.predict(model, files, output, about, allow_other_base=allow_other_base, **replies)
    else:
        found = verbs.asking.predict_api(
            str(model),
            files,
            output,
            api,
            render=render,
            concurrency=concurrency,
            retries=retries,
            timeout_seconds=timeout,
            model={name: value for name, value in about.items() if name != "path"},
            **replies,
        )
    _command.print_values(found | verbs.asking.measure(output, measured))


def _check_way(given: Mapping[str, Any]) -> None:
    """Raise RecipeError for an option of the other way of answering: here, or by a server."""
    from lorikeet.base.errors import RecipeError

    here = given["api"] is None
    for name in ("render", "concurrency", "retries", "timeout") if here else ("allow_other_base",):
        if given[name] != inspect.signature(predict).parameters[name].default:
            where = "without --api" if here else "with --api"
            option = "--" + name.replace("_", "-")
            raise RecipeError(f"{option}: has no effect {where}", given=given[name], try_="leave it out")
