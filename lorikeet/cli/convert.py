"""The command convert: a model from Meta's format to a Hugging Face folder, and back."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from lorikeet.cli import _command


class Format(str, Enum):
    """What can be written."""

    hf = "hf"
    meta = "meta"


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    _command.add(app, convert, "convert", "lorikeet convert llama-2-7b llama-2-7b-hf --to hf")


def convert(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="A folder or a model's name.", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write.", show_default=False)],
    to: Annotated[
        Format,
        typer.Option("--to", help="hf: a Hugging Face folder; meta: Meta's consolidated.NN.pth.", show_default=False),
    ],
    shards: Annotated[int, typer.Option(help="With --to meta: so many files, one for each device there.")] = 1,
    max_shard_gib: Annotated[
        float, typer.Option(min=0.001, max=100_000, help="Largest safetensors file, in GiB.")
    ] = 4.0,
) -> None:
    """Convert a Llama between Meta's format and a Hugging Face folder. Every number stays as it is, bit for bit."""
    from lorikeet.api.converting import convert as run

    found = run(source, folder, to.value, shards=shards, max_shard_bytes=int(max_shard_gib * (1 << 30)))
    _command.print_values(found)
