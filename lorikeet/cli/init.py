"""The command init: from a model, data and a purpose to a commented recipe that fits this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorikeet.cli import _command

if TYPE_CHECKING:
    from lorikeet.plan.first_recipe import First
    from lorikeet.plan.look import Look
    from lorikeet.plan.purposes import Purpose

_MODEL, _OUTPUT = "smollm2-135m", Path("recipe.yaml")


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    _command.add(app, init, "init", "lorikeet init --data mine.jsonl --output recipe.yaml --yes")


def init(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="An alias, a folder, a .gguf file, or a hub name.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", metavar="FILE", help="A file or folder of training data; may be repeated."),
    ] = None,
    purpose: Annotated[
        str | None,
        typer.Option("--purpose", "-p", help="chat, instruct, extract or text; else what the data look like."),
    ] = None,
    adapter: Annotated[
        str, typer.Option("--adapter", "-a", metavar="KIND", help="What trains: lora, full, prefix, ...")
    ] = "lora",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The recipe to write.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take what is proposed.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the recipe if it exists.")] = False,
) -> None:
    """Write a recipe for your data. Looks at the data, the model and this machine, and says why each line is so."""
    asking = not yes and sys.stdin.isatty() and sys.stdout.isatty()
    if not data:
        data = [typer.prompt("Training data (a file or a folder)")] if asking else _no_data()
    if model is None:
        model = typer.prompt("Model", default=_MODEL) if asking else _MODEL
    if output is None:
        output = Path(typer.prompt("Recipe to write", default=str(_OUTPUT))) if asking else _OUTPUT
    _check_output(output, overwrite)
    first = _first(model, data, purpose, adapter, output, asking)
    _check(first.text, output)
    from lorikeet.base.files import write_file

    write_file(output, first.text)
    _say(first, output)


def _first(model: str, data: list[str], purpose: str | None, adapter: str, output: Path, asking: bool) -> First:
    from lorikeet import api
    from lorikeet.models.load import ModelOptions, identify
    from lorikeet.plan import first_recipe, purposes
    from lorikeet.plan.look import look

    wanted = None if purpose is None else purposes.named(purpose)
    base = api.open_base(ModelOptions(path=model))
    family, spec = identify(base.checkpoint)
    # LoRA's rank is the purpose's, and its targets depend on experts: the recipe decides both
    method = None if adapter == "lora" else first_recipe.method_of(adapter, family, spec)
    found = look(data, base.tokenizer)
    if wanted is None and asking:
        wanted = _ask_purpose(found)
    network = first_recipe.network_of(model, family.kind, spec)
    return first_recipe.make(
        network, base.tokenizer, first_recipe.this_machine(), data, recipe=output, purpose=wanted, found=found,
        method=method,
    )  # fmt: skip


def _ask_purpose(found: Look) -> Purpose:
    from lorikeet.base.errors import RecipeError
    from lorikeet.plan import purposes

    for purpose in purposes.PURPOSES.values():
        typer.echo(f"  {purpose.name:<9} {purpose.what}")
    proposed = purposes.suggest(found).name
    while True:
        try:
            return purposes.named(typer.prompt("Purpose", default=proposed))
        except RecipeError as error:
            typer.echo(str(error), err=True)


def _no_data() -> list[str]:
    from lorikeet.base.errors import RecipeError

    raise RecipeError(
        "--data: not given, and there is nobody to ask (no terminal, or --yes)",
        allowed="files and folders of training data",
        try_="lorikeet init --data mine.jsonl",
    )


def _check_output(output: Path, overwrite: bool) -> None:
    """Before anything is downloaded or read."""
    from lorikeet.base.errors import OutputError
    from lorikeet.base.files import need_space

    if output.suffix not in (".yaml", ".yml"):
        raise OutputError(
            f"--output: {output} is no name for a recipe",
            given=str(output),
            allowed="a file ending in .yaml",
            try_=f"--output {output.with_suffix('.yaml') if output.name else _OUTPUT}",
        )
    if output.is_dir():
        raise OutputError(f"--output: {output} is a folder", given=str(output), try_=f"--output {output / _OUTPUT}")
    if output.exists() and not overwrite:
        raise OutputError(
            f"{output} exists already", given=str(output), try_="another --output, or --overwrite to replace it"
        )
    need_space(output.parent, 1 << 20, "the recipe")


def _check(text: str, output: Path) -> None:
    """The recipe reads back, and no option of it is without effect: what is written trains."""
    from lorikeet import config
    from lorikeet.base import yaml_lines

    config.check_effects(config.parse(yaml_lines.parse(text, str(output)).values, name=str(output)))


def _say(first: First, output: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from lorikeet.plan.first_recipe import facts, warnings

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, line in facts(first):
        table.add_row(name, Text(line))
    console = Console(highlight=False)
    console.print(table)
    for line in warnings(first):
        console.print(Text(f"! {line}", style="yellow"))
    console.print(f"\nwrote {output}; next:", markup=False)
    console.print(f"  lorikeet data show {output} -n 2", markup=False, soft_wrap=True)
    console.print(f"  lorikeet train {output}", markup=False, soft_wrap=True)
