"""What all commands share: the flag --debug, and telling `generate.option=value` from files."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorikeet.cli import _numbers

if TYPE_CHECKING:
    from lorikeet.config import Recipe
    from lorikeet.quant._contract import Quant

AllowOtherBase = Annotated[
    bool,
    typer.Option(
        "--allow-other-base", help="Take an adapter on a base or quantisation it was not trained on, and say so."
    ),
]


class Stopped(Exception):
    """Ctrl-C in a command that has nothing to save."""


def add(app: typer.Typer, function: Callable[..., Any], name: str, example: str) -> None:
    """Make `function` the command `name`, with the flag --debug; its help ends with `example`."""
    signature = inspect.signature(function, eval_str=True)
    flag = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
    debug_flag = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=flag)
    parameters = [*signature.parameters.values(), debug_flag]

    def command(*, debug: bool, **given: Any) -> None:  # `main` reads --debug off the command line
        _numbers.check(given)
        try:
            function(**given)
        except KeyboardInterrupt as error:  # typer would swallow it, without a word
            raise Stopped from error

    command.__doc__ = function.__doc__
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    first_sentence = (function.__doc__ or "").split(". ")[0].split(":")[0].strip().removesuffix(".") + "."
    app.command(name, short_help=first_sentence, epilog=f"Example: {example}")(command)


def split_options(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files, and the overrides of the form `generate.option=value`, among the words of a command line. Raises
    RecipeError for an option of another section of recipes."""
    from lorikeet.base.errors import RecipeError
    from lorikeet.config import Recipe

    overrides = [word for word in words if re.match(r"(generate|model)\.[a-z_]+=", word)]
    files = [Path(word) for word in words if word not in overrides]
    for file in files:
        section = re.match(r"([a-z_]+)[a-z_.]*=", str(file))
        if section and section[1] in Recipe.model_fields and not file.exists():
            raise RecipeError(
                f"{file}: no option of `{section[1]}` is read here",
                given=str(file),
                allowed="generate.OPTION=VALUE  model.OPTION=VALUE",
                try_="the rest is what the run was trained with, or what the folder holds",
            )
    return files, overrides


def of_model_and_replies(model: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options `model.option=value` and `generate.option=value` of a command that answers."""
    from lorikeet import config

    about = [word for word in overrides if word.startswith("model.")]
    replies = [word for word in overrides if word not in about]
    return config.options("model", about, path=str(model)), config.options("generate", replies)


def quantisation(kind: str | None, overrides: Sequence[str]) -> Quant | None:
    """The kind that `--into` names, with its options `quant.option=value`; None where it names none."""
    from lorikeet import config
    from lorikeet.base.errors import RecipeError
    from lorikeet.base.kinds import kind_class
    from lorikeet.quant._contract import Quant

    if kind is not None:
        chosen = kind_class("lorikeet.quant", Quant, kind)
        return chosen.model_validate(config.options("quant", overrides, kind=kind))
    if overrides:
        raise RecipeError(
            f"{overrides[0].partition('=')[0]}: has no effect without --into",
            given=overrides[0],
            allowed="options of the kind that --into names",
            try_="--into nf4",
        )
    return None


def recipe_file(asked: Path) -> Path:
    """The recipe that RECIPE|RUN stands for: of a run, the one in its folder."""
    return asked / "recipe.yaml" if asked.is_dir() else asked


@contextmanager
def loaded(path: Path, overrides: Sequence[str], *, makes_run: bool = True, or_run: bool = False) -> Iterator[Recipe]:
    """The recipe, as `config.load` gives it, or where it may be one (`or_run`) the recipe in a run's folder; an error
    about one of its options that is only found later gets the option's line too."""
    from lorikeet import config
    from lorikeet.base.errors import LorikeetError

    if or_run and path.is_dir():
        from lorikeet.api import run_recipe

        recipe, path = run_recipe.load_run(path, overrides), recipe_file(path)
    else:
        recipe = config.load(path, overrides, makes_run=makes_run)
    try:
        yield recipe
    except LorikeetError as error:
        raise config.located(error, config.tree(path, overrides)) from error


def print_values(values: dict[str, Any]) -> None:
    """A command's result on standard output: one `name value` a line, for eyes and for grep."""
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        if not isinstance(value, dict | list):
            typer.echo(f"{name:<{width}}  {f'{value:.6g}' if isinstance(value, float) else value}")
