"""The command export gguf: a file for llama.cpp and Ollama."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorikeet.cli import _command


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Write a model for other programs.")
    _command.add(group, gguf, "gguf", "lorikeet export gguf runs/first -o first.gguf --type q8_0 --modelfile")
    app.add_typer(group, name="export")


def gguf(
    model: Annotated[
        Path,
        typer.Argument(metavar="RUN|MODEL", help="A run, an adapter or model folder, a .gguf file, or an alias."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="model.OPTION=VALUE", help="E.g. model.device=cpu", show_default=False),
    ] = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .gguf file to write.", show_default=False)],
    type_: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="How matrices are kept: f16 (the default), f32, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, tq1_0, tq2_0; "
            "with llama-cpp-python also q4_k_m, q5_k_m, q6_k and its others.",
            show_default=False,
        ),
    ] = None,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="Only the LoRA, for llama.cpp's --lora.")
    ] = False,
    modelfile: Annotated[bool, typer.Option("--modelfile", help="Also write a Modelfile for Ollama.")] = False,
    pre: Annotated[
        str | None,
        typer.Option(
            help="llama.cpp's name for how the tokenizer splits text, if it is not found.", show_default=False
        ),
    ] = None,
    allow_other_base: _command.AllowOtherBase = False,
) -> None:
    """One GGUF file of a run or a model. With tokenizer, chat template and the adapter folded in."""
    from lorikeet import config
    from lorikeet.api.exporting import export_gguf

    found = export_gguf(
        model,
        output,
        type=type_,
        adapter_only=adapter_only,
        with_modelfile=modelfile,
        pre=pre,
        model=config.options("model", overrides or [], path=str(model)),
        allow_other_base=allow_other_base,
    )
    _command.print_values(found)
