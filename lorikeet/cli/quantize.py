"""The command quantize: a model in GPTQ's format, calibrated on the data it will be trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorikeet.cli import _command

if TYPE_CHECKING:
    from lorikeet.config import Recipe

_SOLVER = ("bits", "group_size", "desc_act", "static_groups", "sym", "mse", "damp_percent")


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    _command.add(app, quantize, "quantize", "lorikeet quantize smollm2-135m mine.json --output smollm2-gptq")


def quantize(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|RECIPE", help="A dense model, or a recipe that names one.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.", show_default=False)],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="Training data to calibrate on, where no recipe names it; data.OPTION=VALUE and model.OPTION=VALUE "
            "may stand among them.",
            show_default=False,
        ),
    ] = None,
    bits: Annotated[int, typer.Option(help="Bits of a weight: 2, 3, 4 or 8.")] = 4,
    group_size: Annotated[int, typer.Option(help="Inputs that share a scale; -1: all of a row.")] = 128,
    desc_act: Annotated[
        bool, typer.Option("--desc-act/--no-desc-act", help="Round the columns of the largest inputs first.")
    ] = True,
    static_groups: Annotated[
        bool,
        typer.Option(
            "--static-groups/--no-static-groups",
            help="With --desc-act, groups keep the inputs' order: faster to read, a little less exact.",
        ),
    ] = True,
    sym: Annotated[bool, typer.Option("--sym/--no-sym", help="The zero point in the middle of the grid.")] = True,
    mse: Annotated[
        bool, typer.Option("--mse/--no-mse", help="Look for the grid with the least error; it may clip.")
    ] = False,
    damp_percent: Annotated[float, typer.Option(help="Share of the Hessian's mean diagonal added to it.")] = 0.01,
    true_sequential: Annotated[
        bool,
        typer.Option(
            "--true-sequential/--no-true-sequential", help="Each linear on what the rounded ones before give."
        ),
    ] = True,
    rows: Annotated[int, typer.Option(min=1, max=1_000_000, help="Conversations to calibrate on.")] = 128,
    max_shard_gib: Annotated[
        float, typer.Option(min=0.001, max=100_000, help="Largest safetensors file, in GiB.")
    ] = 1.0,
) -> None:
    """Quantise a model with GPTQ on your training data. Writes a folder that trains here and loads in gptqmodel,
    transformers and vLLM."""
    options = {name: value for name, value in locals().items() if name in _SOLVER}
    from lorikeet.api.quantizing import by_layer
    from lorikeet.api.quantizing import quantize as run

    sizes: dict[str, Any] = {"rows": rows, "max_shard_bytes": int(max_shard_gib * (1 << 30))}
    found = run(_recipe(model, words or []), output, _options(options), true_sequential=true_sequential, **sizes)
    _print_errors(by_layer(found.pop("linears")))
    _command.print_values(found)


def _recipe(model: str, words: list[str]) -> Recipe:
    """The recipe in a file, or one made of a model, with the template that it was trained with, and data files."""
    import re

    from lorikeet import config
    from lorikeet.adapters._storage import read_template
    from lorikeet.base.errors import RecipeError

    overrides = [word for word in words if re.match(r"[a-z_]+(\.[a-z_]+)+=", word)]
    files = [word for word in words if word not in overrides]
    for word in overrides:
        _refuse_idle(word)
    if Path(model).suffix in (".yaml", ".yml"):
        if files:
            raise RecipeError(
                "quantize: the recipe names the data already", given=files[0], allowed="one of the two", try_=model
            )
        return config.load(Path(model), overrides)
    if not files:
        raise RecipeError(
            "quantize: no data to calibrate on",
            given=model,
            allowed="files in any data format, or a recipe",
            try_=f"lorikeet quantize {model} mine.json --output quantised",
        )
    said: dict[str, Any] = {"output_dir": "unused", "model": {"path": model}, "data": {"train": files}}
    recipe = config.parse(said, overrides, name=config.COMMAND_LINE)
    trained = (
        None
        if "template" in recipe.data.model_fields_set
        else read_template(Path(model), allow_code=recipe.model.allow_code)
    )
    if trained is None:
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"template": trained})})


def _refuse_idle(word: str) -> None:
    """Raise RecipeError for an option that decides nothing of a quantised model: only rows and their order do."""
    from lorikeet import config
    from lorikeet.base.errors import RecipeError

    option, _, value = word.partition("=")
    section, _, name = option.partition(".")
    if section in ("data", "model") or option == "train.seed":
        return
    flag = f"--{name.replace('_', '-')}"
    switch = {"true": flag, "false": f"--no-{flag[2:]}"}.get(value, f"{flag} {value}")
    raise RecipeError(
        f"{option}: has no effect here",
        given=f"{word}   ({config.COMMAND_LINE})",
        allowed="data.option=value, model.option=value, train.seed=value",
        try_=switch if section == "quant" and name in _SOLVER else None,
    )


def _options(given: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    from lorikeet.base.errors import RecipeError
    from lorikeet.quant._gptq_solver import SolverOptions

    try:
        return SolverOptions.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        allowed = {"bits": "2 3 4 8", "group_size": "-1, or above 0", "damp_percent": "above 0 and below 1"}
        raise RecipeError(
            f"--{name.replace('_', '-')}: not possible", given=first["input"], allowed=allowed.get(name)
        ) from None


def _print_errors(lines: list[tuple[str, str, str, str]]) -> None:
    """How much of each linear's output is lost, as the mean square, beside rounding to nearest."""
    widths = [max(map(len, column)) for column in zip(*lines)] if lines else []
    head = ("layer", "linears", "GPTQ", "nearest")
    widths = [max(width, len(word)) for width, word in zip(widths, head)]
    for line in (head, *lines):
        layer, linears, ours, nearest = (word.ljust(width) for word, width in zip(line, widths))
        typer.echo(f"{layer}  {linears}  {ours.strip():>8}  {nearest.strip():>8}")
