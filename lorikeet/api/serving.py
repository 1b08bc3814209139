"""The verb serve: whatever can answer, over HTTP, with the template it was trained with.

A run, or an adapter's folder, is opened as its base with the adapter beside it, where the adapter's kind allows that:
then both answer, each by its name.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lorikeet.api.answering import open_any, own_sampling, trained_system
from lorikeet.base.errors import LorikeetError, RecipeError
from lorikeet.base.extras import require
from lorikeet.base.log import note
from lorikeet.infer.batch import Batch
from lorikeet.infer.engine import Engine
from lorikeet.infer.named_adapters import check_takes
from lorikeet.infer.sampling import GenerateOptions

if TYPE_CHECKING:
    from fastapi import FastAPI

    from lorikeet.serve.settings import Settings

KEYS, USERS = "LORIKEET_API_KEYS", "LORIKEET_BASIC_AUTH"  # secrets do not belong on a command line
_LEAST_SECRET = 8  # characters
_BACKLOG = 2048  # connections that wait to be taken; uvicorn's
# PyTorch's matmuls in bfloat16 on a CPU are oneDNN's. Two caches, oneDNN's and PyTorch's own, keep 0.6 MiB for each
# number of rows that meets a weight's shape, made in half a millisecond. By themselves they end at 1,024: 0.6 GiB.
_SHAPE_CACHES, _SHAPES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"), 128
_NO_EFFECT = {"batch_size": "--rows", "logprobs": "logprobs in the request"}  # of `generate`, and what has


@dataclass(frozen=True)
class Rows:
    """How replies are made together."""

    rows: int = 16
    cache_tokens: int | None = None
    kv: Literal["auto", "int8"] = "auto"
    prefill_tokens: int = 2048


@dataclass(frozen=True)
class Access:
    """Who may ask, from where, and by which name of this server."""

    host: str = "127.0.0.1"
    port: int = 8000
    key_file: Path | None = None
    basic_file: Path | None = None
    origins: Sequence[str] = ()
    hosts: Sequence[str] = ()


@dataclass(frozen=True)
class Named:
    """What is served, and by which names."""

    path: str | Path
    name: str | None = None  # None: the folder's
    adapters: Mapping[str, Path] = field(default_factory=dict)  # name -> folder
    model: Mapping[str, Any] = field(default_factory=dict)  # options of the recipe's section
    allow_other_base: bool = False


def serve(named: Named, access: Access, rows: Rows, *, page: bool = True, **limits: Any) -> None:
    """Answer until SIGTERM or Ctrl-C. `limits`: fields of `Settings`."""
    require("uvicorn", extra="serve", needed_by="lorikeet serve")
    for cache in _SHAPE_CACHES:  # both read it at the process's first such matmul
        os.environ.setdefault(cache, str(_SHAPES))
    listening = bound(access)  # a port that is taken is told before a model is read
    try:
        app, settings = application(named, access, rows, page=page, **limits)
        from lorikeet.serve.process import serve as answer

        _listen(listening, access)  # before the address is told: who reads it may ask at once
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        note(f"serving {' '.join(app.state.service.models())} at http://{shown}:{port}/v1" + _beware(access, settings))
        answer(app, settings, listening)
    finally:
        listening.close()


def application(
    named: Named, access: Access, rows: Rows, *, page: bool = True, **limits: Any
) -> tuple[FastAPI, Settings]:
    """The application, with the model read and the adapters loaded."""
    for package in ("fastapi", "prometheus_client"):
        require(package, extra="serve", needed_by="lorikeet serve")
    from lorikeet.serve.app import create_app
    from lorikeet.serve.asking import usual
    from lorikeet.serve.page import mount
    from lorikeet.serve.settings import BASE, Settings
    from lorikeet.serve.worker import Worker

    replies: Mapping[str, Any] = limits.get("generate", {})
    for option, instead in _NO_EFFECT.items():
        if option in replies:
            raise RecipeError(f"generate.{option}: has no effect on a server", given=replies[option], try_=instead)
    if replies.get("num_beams", 1) > rows.rows:
        raise RecipeError(
            "generate.num_beams: more than the server has rows, so no request could be answered",
            given=replies["num_beams"],
            allowed=f"at most {rows.rows}",
            try_=f"--rows {replies['num_beams']}",
        )
    own = named.name or model_name(named.path)
    for name in named.adapters:
        if name in (own, BASE):  # requests that name it would be given the model
            raise RecipeError(
                "--adapter: the name is taken", given=name, allowed="a name of its own, or another --name"
            )
    settings = Settings(
        own,
        api_keys=secrets(KEYS, access.key_file),
        users=_users(secrets(USERS, access.basic_file)),
        origins=tuple(access.origins),
        **limits,
    )
    note(f"reading {named.path}")
    engine, opened, adapter, _ = open_any(named.path, named.model, allow_other_base=named.allow_other_base)
    base: Literal["same", "apart", "none"] = "same"
    if adapter is not None:
        base = "apart" if _can_do_without(engine) else "none"
    settings = replace(settings, hosts=_hosts(access, settings.locked), base=base, systems=_systems(named, own))
    batch = Batch(
        engine,
        rows=rows.rows,
        cache_tokens=rows.cache_tokens,
        kv=rows.kv,
        prefill_tokens=rows.prefill_tokens,
        dequantize=replies.get("dequantize", "auto"),
    )
    for name, folder in named.adapters.items():
        batch.load_adapter(name, folder)
    settings = replace(settings, generate=_usual(*own_sampling(named.path, opened.checkpoint, named.model), replies))
    app = create_app(Worker(batch, queue=settings.queue), settings)
    if page:
        mount(app, Path(named.path) / "report.html", usual(settings))
    return app, settings


def _usual(file: Path, own: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """The options of requests that do not say: the command's (`told`), else the model's `own`, which `file` says."""
    own = {name: value for name, value in own.items() if name not in told}
    if told.get("num_beams", 1) > 1:  # which draw nothing
        own.pop("temperature", None)
    nothing_said = GenerateOptions().model_dump() | {"temperature": 1.0}
    changed = {name: value for name, value in own.items() if value != nothing_said[name]}
    if changed:
        shown = ", ".join(f"{name} {value}" for name, value in changed.items())
        note(f"a request that does not say is answered as {file} says: {shown}")
    return own | dict(told)


def _systems(named: Named, own: str) -> dict[str, str]:
    """The system prompt that each was trained behind, where it was one."""
    found = {name: trained_system(path) for name, path in {own: named.path, **named.adapters}.items()}
    return {name: system for name, system in found.items() if system}


def _can_do_without(engine: Engine) -> bool:
    """Whether the model's own adapter can be left out for single replies."""
    try:
        check_takes(engine.model)
    except LorikeetError:
        return False
    return True


def model_name(path: str | Path) -> str:
    """What a model is called where nobody says: the last part of its path."""
    return Path(path).resolve().name if str(path) in (".", "..") else Path(path).name


def bound(access: Access) -> socket.socket:
    """A socket with its address, which does not listen yet. Raises LorikeetError for an address that is not ours, or a
    port that is taken."""
    family = socket.AF_INET6 if ":" in access.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((access.host, access.port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise _taken(access, error) from error
    return listening


def _listen(bound: socket.socket, access: Access) -> None:
    try:
        bound.listen(_BACKLOG)
    except OSError as error:  # another took the port while this one's model was read
        raise _taken(access, error) from error


def _taken(access: Access, error: Exception) -> LorikeetError:
    return LorikeetError(
        "cannot listen there",
        given=f"{access.host}:{access.port}: {error}",
        allowed="an address of this machine, and a port that is free",
        try_="--port 0 takes any free one",
    )


def secrets(variable: str, file: Path | None) -> tuple[str, ...]:
    """The secrets in a file, one a line, and in an environment variable, between commas."""
    lines = os.environ.get(variable, "").split(",")
    if file is not None:
        try:
            lines += file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise LorikeetError(f"cannot read {file}", given=error, allowed="a text file, one secret a line") from error
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if file is not None and not found:
        raise LorikeetError(f"{file} holds no secret", allowed="one a line; lines with # in front are left out")
    short = [one for one in found if len(one) < _LEAST_SECRET]
    if short:
        raise LorikeetError(
            f"a secret in {file or variable} is too short", allowed=f"{_LEAST_SECRET} characters or more",
            try_='python -c "import secrets; print(secrets.token_urlsafe())"',
        )  # fmt: skip
    return tuple(dict.fromkeys(found))


def _users(given: tuple[str, ...]) -> tuple[str, ...]:
    if any(":" not in one for one in given):
        raise LorikeetError("a line for basic auth has no colon", allowed="name:password")
    return given


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hosts(access: Access, locked: bool) -> tuple[str, ...]:
    """Names that a request may call this server by. One that is open to this machine alone goes by this machine's names
    only, so that no web page can reach it under a name of its own (DNS rebinding)."""
    own = ("localhost", "127.0.0.1", "[::1]") if _is_loopback(access.host) and not locked else ()
    if own or access.hosts:
        return tuple(dict.fromkeys([*own, *(host.lower() for host in access.hosts), access.host]))
    return ()


def _beware(access: Access, settings: Settings) -> str:
    if settings.locked or _is_loopback(access.host):
        return ""
    return "\nanyone who reaches this machine may ask: no key is set (--api-key-file)"


def adapters_of(words: Sequence[str]) -> dict[str, Path]:
    """{name: folder} of `NAME=FOLDER`, as --adapter takes it."""
    found: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or not name or not folder or name in found:
            raise RecipeError("--adapter: not a name and a folder", given=word, allowed="NAME=FOLDER, each name once")
        found[name] = Path(folder)
    return found
