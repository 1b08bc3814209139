"""The verb serve, where another program does it: what was trained is put into the form that it takes.

An adapter that the program cannot load is refused here, with what to do, before the program says so in its own words.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from lorikeet.adapters import _storage as storage
from lorikeet.adapters._new_tokens import tokens_of
from lorikeet.adapters.lora import Lora
from lorikeet.api.answering import Located, locate
from lorikeet.api.exporting import export_gguf
from lorikeet.api.serving import KEYS, USERS, model_name, secrets
from lorikeet.base.errors import CheckpointError, MissingExtra, RecipeError
from lorikeet.base.files import cache_dir, sha256_file, write_file
from lorikeet.base.kinds import family_files
from lorikeet.base.log import note
from lorikeet.checkpoints.gguf import GGUFCheckpoint
from lorikeet.data.templates._turns import chat_template
from lorikeet.serve.engines._contract import Served, ServeEngine, Start

CONTEXT = 8192  # tokens of a prompt with its reply, at most, unless said: keys and values take room for each


@dataclass(frozen=True)
class Asked:
    """What the command line says."""

    path: str | Path
    name: str | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    allow_other_base: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    rows: int = 16
    key_file: Path | None = None


def engine_of(name: str) -> ServeEngine:
    """The engine that --engine names. Raises RecipeError."""
    known = {found.kind: found for found in family_files("lorikeet.serve.engines", ServeEngine)}
    if name not in known:
        raise RecipeError("--engine: unknown", given=name, allowed=" ".join(["lorikeet", *known]))
    return known[name]()


def prepared(engine: ServeEngine, asked: Asked, *, only_print: bool = False) -> tuple[Start, list[str]]:
    """(how the program is started, commands to run before it). A GGUF file that is needed is written into the cache,
    or with `only_print` the command that writes it is given. Raises RecipeError, CheckpointError."""
    located = locate(asked.path, asked.model, allow_other_base=asked.allow_other_base)
    if asked.adapters and not engine.several_adapters:
        raise RecipeError(
            f"--adapter: has no effect with --engine {engine.kind}, which serves one model",
            given=next(iter(asked.adapters)),
            allowed="the run's own adapter, folded in",
            try_="Lorikeet's own server, which serves several",
        )
    name = asked.name or model_name(asked.path)
    before: list[str] = []
    adapters: dict[str, Path] = {}
    if engine.takes == "gguf":
        weights, before = _gguf(located, asked, only_print)
        template = None
    else:
        weights, template = _folder(engine, located, asked.path), _template(engine, located)
        own = {} if located.adapter_folder is None else {name: located.adapter_folder}
        name = f"{name}-base" if own else name
        for taken in asked.adapters.keys() & {*own, name}:
            raise RecipeError("--adapter: the name is taken", given=taken, allowed="a name of its own")
        adapters = own | dict(asked.adapters)
    served = Served(
        weights=weights,
        name=name,
        template=template,
        adapters={one: folder.resolve() for one, folder in adapters.items()},
        rank=max((_rank(engine, folder) for folder in adapters.values()), default=0),
        context=min(CONTEXT, located.base.shape.max_position),
        rows=asked.rows,
        host=asked.host,
        port=asked.port,
        key=_key(asked.key_file),
    )
    return engine.start(served), before


def hand_over(engine: ServeEngine, asked: Asked) -> None:
    """Become the program. Raises MissingExtra where it is not installed."""
    start, before = prepared(engine, asked, only_print=True)  # nothing is exported for a program that is not there
    program = shutil.which(start.words[0])
    module = start.words[2] if start.words[1:2] == ("-m",) else None
    if program is None or (module is not None and importlib.util.find_spec(module.partition(".")[0]) is None):
        raise MissingExtra(
            f"--engine {engine.kind}: the program is not installed",
            given=module or start.words[0],
            try_=engine.install,
        )
    if before:
        start, _ = prepared(engine, asked)
    note(shlex.join(start.words))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program, list(start.words), {**os.environ, **start.environment})


def _gguf(located: Located, asked: Asked, only_print: bool) -> tuple[Path, list[str]]:
    """The model as one GGUF file: itself, or an export of it in the cache."""
    base, adapter = located.base, located.adapter_folder
    if adapter is None and isinstance(base.checkpoint, GGUFCheckpoint):
        return base.checkpoint.path.resolve(), []
    parts = [base.checkpoint.fingerprint(), located.quant.model_dump_json(), located.template.model_dump_json()]
    parts.append(base.options.model_dump_json(exclude={"path"}))
    parts += [] if adapter is None else [sha256_file(adapter / name) for name in (storage.WEIGHTS, storage.CONFIG)]
    named = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    file = cache_dir() / "gguf" / f"{Path(asked.path).stem}-{named}.gguf"
    if file.is_file():
        return file, []
    if only_print:
        options = [f"model.{one}={value if isinstance(value, str) else json.dumps(value)}"
                   for one, value in to_jsonable_python(dict(asked.model)).items()]  # fmt: skip
        words = ["lorikeet", "export", "gguf", str(asked.path), *options, "-o", str(file)]
        return file, [shlex.join([*words, *(["--allow-other-base"] if asked.allow_other_base else [])])]
    export_gguf(asked.path, file, model=asked.model, allow_other_base=asked.allow_other_base)
    return file, []


def _folder(engine: ServeEngine, located: Located, path: str | Path) -> Path:
    checkpoint = located.base.checkpoint
    if checkpoint.layout != "hf":
        raise CheckpointError(
            f"--engine {engine.kind}: it is started on Hugging Face folders, and this base is none",
            given=f"{checkpoint.path}, {checkpoint.layout}",
            allowed="a folder with config.json and safetensors",
            try_=f"lorikeet merge {path} FOLDER, and serve FOLDER"
            if located.adapter_folder is not None
            else "--engine llama.cpp, or Lorikeet's own server",
        )
    return checkpoint.path.resolve()


def _template(engine: ServeEngine, located: Located) -> Path:
    """The template that was trained with, as a file in the cache."""
    said = chat_template(located.template.bind(located.base.tokenizer))
    if said is None:
        raise RecipeError(
            f"--engine {engine.kind}: this template has no form in jinja",
            given=located.template.model_dump().get("kind"),
            allowed="the model's own, and most of docs/templates.md",
            try_="Lorikeet's own server",
        )
    file = cache_dir() / "templates" / f"{hashlib.sha256(said.encode()).hexdigest()[:16]}.jinja"
    if not file.is_file():
        write_file(file, said)
    return file


def _rank(engine: ServeEngine, folder: Path) -> int:
    """The adapter's rank. Raises RecipeError for one that other engines do not load."""
    adapter = storage.read_options(folder)
    plain = isinstance(adapter, Lora) and tokens_of(adapter) is None
    if not isinstance(adapter, Lora) or not plain or adapter.bias != "none" or adapter.modules_to_save:
        raise RecipeError(
            f"--engine {engine.kind}: it loads plain LoRA adapters only",
            given=f"{folder}: {adapter.model_dump()['kind']}" + (", which trains more than A and B" if plain else ""),
            allowed="adapter.kind lora, without biases, modules and new tokens",
            try_="lorikeet merge, and serve the folder; or Lorikeet's own server",
        )
    return max([adapter.r, *adapter.rank_pattern.values()])


def _key(file: Path | None) -> str | None:
    if secrets(USERS, None):  # whoever set it wants the server locked
        raise RecipeError(f"{USERS}: has no effect with --engine, which knows keys only", try_=KEYS)
    keys = secrets(KEYS, file)
    if len(keys) > 1:
        raise RecipeError(
            "--api-key-file: another program takes one key", given=f"{len(keys)} keys", allowed=f"one, {KEYS}'s too"
        )
    return keys[0] if keys else None
