"""serve --engine: which of serve's options another program is told, and handing over to it."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

TOLD = {"model", "overrides", "host", "port", "name", "adapter", "rows", "api_key_file", "allow_other_base"} | {
    "engine",
    "print_",
}

Engine = Annotated[
    str, typer.Option("--engine", help="Who answers: lorikeet, or after handing over to it vllm or llama.cpp.")
]
Print = Annotated[bool, typer.Option("--print", help="With --engine: only print the command line.")]


def handed_over(command: Callable[..., None], given: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """Whether another program serves; if so, this returns only where its command line was to be printed.

    given: the arguments of the command, by name. Raises RecipeError for an option that the program is not told."""
    from lorikeet.api import handing_over
    from lorikeet.api.serving import adapters_of
    from lorikeet.base.errors import RecipeError

    engine, only_print = given["engine"], given["print_"]
    if engine == "lorikeet":
        if only_print:
            raise RecipeError("--print: has no effect without --engine", given="--print", try_="--engine vllm")
        return False
    found = handing_over.engine_of(engine)
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in TOLD and given[name] != parameter.default:
            option = "--" + name.replace("_", "-")
            raise RecipeError(
                f"{option}: has no effect with --engine {engine}, which has options of its own",
                given=given[name],
                try_=f"--print, and the command line with an option of {engine}'s",
            )
    if any(word.startswith("generate.") for word in given["overrides"] or []):
        raise RecipeError(
            "generate: has no effect with --engine, requests say how they are answered", try_="leave it out"
        )
    asked = handing_over.Asked(
        path=given["model"],
        name=given["name"],
        adapters=adapters_of(given["adapter"] or []),
        model=about,
        allow_other_base=given["allow_other_base"],
        host=given["host"],
        port=given["port"],
        rows=given["rows"],
        key_file=given["api_key_file"],
    )
    if not only_print:
        handing_over.hand_over(found, asked)
    start, before = handing_over.prepared(found, asked, only_print=True)
    for line in before:
        typer.echo(line)
    secrets = "".join(f"{name}=... " for name in start.environment)
    typer.echo(secrets + shlex.join(start.words))
    return True
