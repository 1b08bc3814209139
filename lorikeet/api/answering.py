"""The verbs engine, predict and chat: whatever can answer is opened with the template it was trained with."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lorikeet import config
from lorikeet.adapters import _storage as storage
from lorikeet.adapters._contract import Adapter
from lorikeet.api.base import Base, attach, open_base
from lorikeet.base.errors import CheckpointError
from lorikeet.base.files import sha256_file
from lorikeet.base.kinds import kind_field
from lorikeet.data.formats.auto import Auto
from lorikeet.data.rows import conversations
from lorikeet.data.templates._contract import TemplateOptions
from lorikeet.data.templates.jinja import Jinja
from lorikeet.infer.chat import Chat
from lorikeet.infer.engine import Engine
from lorikeet.infer.predict import check_output
from lorikeet.infer.predict import predict as predict_file
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.models.load import ModelOptions
from lorikeet.quant.none import NoQuant
from lorikeet.train import state as run_state
from lorikeet.train.metrics import peak_rss_bytes


def engine(path: str | Path, model: Mapping[str, Any] | None = None) -> Engine:
    """What answers: a run, an adapter folder, a merged model, or any model that `resolve` finds. `model`: options of
    the recipe's section, for what the folder does not say (or says otherwise): {"dtype": "float32"}."""
    return open_any(path, model)[0]


def predict(
    path: str | Path,
    inputs: Sequence[Path | str],
    output: Path,
    model: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Answer every prompt of the input files; writes one JSON object per line to `output`. `model`: see `engine`."""
    generate = GenerateOptions(**options)
    check_output(output, inputs)
    read = list(conversations([str(file) for file in inputs], Auto.model_validate({}), reply=False))
    start = time.perf_counter()
    rows = predict_file(engine(path, model), read, output, generate)
    seconds = time.perf_counter() - start
    return {"replies": len(rows), "seconds": seconds, "output": str(output), "peak_rss_bytes": peak_rss_bytes()}


def chat(path: str | Path, model: Mapping[str, Any] | None = None, **options: Any) -> None:
    """Talk to a run, an adapter or a model at the terminal. `model`: see `engine`."""
    Chat(engine(path, model), GenerateOptions(**options)).run()


def open_any(
    path: str | Path, changed: Mapping[str, Any] | None = None
) -> tuple[Engine, Base, Adapter | None, dict[str, Any]]:
    """(engine, base, adapter, identity) of whatever can answer."""
    folder = Path(path)
    quant, adapter = NoQuant(), None
    if (folder / "recipe.yaml").is_file():
        recipe = config.load(folder / "recipe.yaml")
        options, quant = recipe.model, recipe.quant
        where = run_state.trained_adapter(folder)
        template_options: TemplateOptions = recipe.data.template
    elif (folder / storage.CONFIG).is_file():
        where = folder
        base_name = storage.read_json(folder / storage.CONFIG).get("base_model_name_or_path")
        if not base_name:
            raise CheckpointError(
                f"the adapter in {folder} does not say which model it belongs to",
                given=f"no base_model_name_or_path in {storage.CONFIG}",
                try_="write the model's path there",
            )
        options = ModelOptions(path=str(base_name))
        template_options = _template(folder)
    else:
        where, options, template_options = None, ModelOptions(path=str(path)), _template(folder)
    base = open_base(options.model_copy(update=dict(changed or {})))
    template = template_options.bind(base.tokenizer)
    model = base.load(quant)
    identity: dict[str, Any] = {}
    if where is not None:
        adapter, identity = attach(model, base, where)
    if identity and identity.get("template_fingerprint") not in (None, template.fingerprint):
        raise CheckpointError(
            "the template differs from the one the adapter was trained with",
            given=template.fingerprint[:12],
            allowed=identity["template_fingerprint"][:12],
        )
    weights = base.checkpoint.fingerprint() + (sha256_file(where / storage.WEIGHTS) if where else "")
    return Engine(model, base.tokenizer, template, f"{weights} {model.dtype}"), base, adapter, identity


def _template(folder: Path) -> TemplateOptions:
    """The template that lorikeet.json names, else the model's own."""
    named = storage.read_json(folder / storage.IDENTITY).get("template")
    if named is None:
        return Jinja.model_validate({})
    read: TemplateOptions = TypeAdapter(kind_field("lorikeet.data.templates", TemplateOptions)).validate_python(named)
    return read
