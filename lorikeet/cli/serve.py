"""The command serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorikeet.cli import _command, _engine
from lorikeet.cli.model import GenerateOverrides, Model

KeyFile = Annotated[Path | None, typer.Option(help="Keys that may ask, one a line; also LORIKEET_API_KEYS.")]
BasicAuthFile = Annotated[
    Path | None, typer.Option(help="name:password that may ask, one a line; also LORIKEET_BASIC_AUTH.")
]
Origins = Annotated[
    list[str] | None, typer.Option(help="A web page's origin that may ask. Repeatable; none by default.")
]
Hosts = Annotated[
    list[str] | None, typer.Option(help="A name that this server goes by, behind a proxy, say. Repeatable.")
]

CacheTokens = Annotated[
    int | None,
    typer.Option(min=16, max=1 << 28, help="Tokens whose keys and values are kept, of all replies together."),
]
Body = Annotated[float, typer.Option(min=0.001, max=65_536, help="Largest body of a request, in MiB.")]
Drain = Annotated[float, typer.Option(min=0, max=86_400, help="For replies to end when asked to stop.")]


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    _command.add(app, serve, "serve", "lorikeet serve runs/first --port 8000")


def serve(
    model: Model,
    overrides: GenerateOverrides = None,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="What requests call the model. [its folder's name]")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FOLDER", help="Another adapter of the same base. Repeatable.")
    ] = None,
    adapter_folder: Annotated[
        list[Path] | None, typer.Option(help="Let clients load adapters from below this folder. Repeatable.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=1024, help="Replies that are made at once.")] = 16,
    cache_tokens: CacheTokens = None,
    kv: Annotated[str, typer.Option(help="How keys and values are kept: auto (as computed), or int8.")] = "auto",
    prefill_tokens: Annotated[
        int, typer.Option(min=16, help="Tokens of prompts that are read in one pass, at most.")
    ] = 2048,
    api_key_file: KeyFile = None,
    basic_auth_file: BasicAuthFile = None,
    cors_origin: Origins = None,
    allowed_host: Hosts = None,
    queue: Annotated[int, typer.Option(min=0, help="Replies that may wait for a row; then 429.")] = 64,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a reply that a client may ask for. [the context]")
    ] = None,
    max_body_mib: Body = 4.0,
    drain_seconds: Drain = 30.0,
    page: Annotated[bool, typer.Option("--page/--no-page", help="The chat at /.")] = True,
    engine: _engine.Engine = "lorikeet",
    print_: _engine.Print = False,
    allow_other_base: _command.AllowOtherBase = False,
) -> None:
    """Answer over HTTP, as OpenAI's API does. Ctrl-C or SIGTERM ends it when replies are done."""
    given = dict(locals())
    from lorikeet.api import serving
    from lorikeet.base.errors import RecipeError

    about, replies = _command.of_model_and_replies(model, overrides or [])
    if _engine.handed_over(serve, given, about):
        return
    if kv not in ("auto", "int8"):
        raise RecipeError("--kv: unknown", given=kv, allowed="auto int8")
    serving.serve(
        serving.Named(model, name, serving.adapters_of(adapter or []), about, allow_other_base),
        serving.Access(host, port, api_key_file, basic_auth_file, cors_origin or (), allowed_host or ()),
        serving.Rows(rows, cache_tokens, "int8" if kv == "int8" else "auto", prefill_tokens),
        page=page,
        generate=replies,
        adapter_folders=tuple(adapter_folder or ()),
        queue=queue,
        max_new_tokens=max_new_tokens,
        max_body_bytes=int(max_body_mib * (1 << 20)),
        drain_seconds=drain_seconds,
    )
