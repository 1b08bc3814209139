"""The verbs engine, predict and chat: whatever can answer is opened with the template it was trained with."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorikeet.adapters import _storage as storage
from lorikeet.adapters._contract import Adapter
from lorikeet.api import run_recipe
from lorikeet.api.base import Base, attach, open_base
from lorikeet.api.prompts import read_prompts
from lorikeet.api.run_recipe import load_run
from lorikeet.base.errors import CheckpointError
from lorikeet.base.files import sha256_file
from lorikeet.base.log import no_lines
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.checkpoints.gguf import GGUFCheckpoint
from lorikeet.config import Recipe
from lorikeet.data.templates._contract import TemplateOptions
from lorikeet.data.templates.jinja import Jinja
from lorikeet.infer import generation_config
from lorikeet.infer.chat import Chat
from lorikeet.infer.engine import Engine
from lorikeet.infer.predict import check_output
from lorikeet.infer.predict import predict as predict_file
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.load import ModelOptions
from lorikeet.models.stored import fitting
from lorikeet.quant._contract import Quant
from lorikeet.quant.none import NoQuant
from lorikeet.train import state as run_state
from lorikeet.train.metrics import peak_rss_bytes

_SAMPLED = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "logit_bias", "stop",
)  # fmt: skip
SYSTEM = "lorikeet.system"  # in an exported GGUF file: what its conversations began with


def engine(path: str | Path, model: Mapping[str, Any] | None = None, *, allow_other_base: bool = False) -> Engine:
    """What answers: a run, an adapter folder, a merged model, or any model that `resolve` finds. `model`: options of
    the recipe's section, for what the folder does not say (or says otherwise): {"dtype": "float32"}.

    An adapter of another base or quantisation than it finds is refused unless `allow_other_base`."""
    return open_any(path, model, allow_other_base=allow_other_base)[0]


def predict(
    path: str | Path,
    inputs: Sequence[Path | str],
    output: Path,
    model: Mapping[str, Any] | None = None,
    *,
    allow_other_base: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Answer every prompt of the input files; writes one JSON object per line to `output`. `model` and
    `allow_other_base`: see `engine`."""
    generate = GenerateOptions(**options)
    check_output(output, inputs)
    read = read_prompts(inputs, path, model)
    start = time.perf_counter()
    rows = predict_file(engine(path, model, allow_other_base=allow_other_base), read, output, generate)
    seconds = time.perf_counter() - start
    return {"replies": len(rows), "seconds": seconds, "output": str(output), "peak_rss_bytes": peak_rss_bytes()}


def chat(
    path: str | Path, model: Mapping[str, Any] | None = None, *, allow_other_base: bool = False, **options: Any
) -> None:
    """Talk to a run, an adapter or a model at the terminal. `model` and `allow_other_base`: see `engine`."""
    answering = engine(path, model, allow_other_base=allow_other_base)
    Chat(answering, GenerateOptions(**options), system=trained_system(path), name=Path(path).name).run()


def trained_system(path: str | Path) -> str | None:
    """The system prompt that all conversations began with which a run, an adapter, a merged model or an exported file
    learned from; None where they had none, or several, or nothing is known. Raises CheckpointError for a broken
    lorikeet.json or file."""
    folder = Path(path)
    if folder.suffix == ".gguf" and folder.is_file():
        found = GGUFCheckpoint(folder).metadata(SYSTEM)
        return found if isinstance(found, str) else None
    if (folder / "recipe.yaml").is_file():
        with no_lines():  # which of a run's adapters is used was said when it was opened
            folder = run_state.trained_adapter(folder)
    return storage.read_identity(folder).get("system")


def own_sampling(
    path: str | Path, base: Checkpoint, model: Mapping[str, Any] | None = None
) -> tuple[Path, dict[str, Any]]:
    """(file that says it, options of `generate`) of whatever can answer: of a run how its recipe samples, so how it was
    measured; else what the generation_config.json of its `base` says. A recipe's max_new_tokens is of measuring alone.
    `model`: see `engine`."""
    if not (Path(path) / run_recipe.FILE).is_file():
        return base.path / generation_config.FILE, sampling_of(None, base)
    with no_lines():  # it was read when the run was opened
        recipe = load_run(Path(path), model=model)
    return Path(path) / run_recipe.FILE, sampling_of(recipe, base)


def sampling_of(recipe: Recipe | None, base: Checkpoint) -> dict[str, Any]:
    """The same of a run's recipe, or of a base where there is none."""
    if recipe is None:
        return generation_config.read(base.path)
    return {name: getattr(recipe.generate, name) for name in _SAMPLED}


@dataclass(frozen=True)
class Located:
    """What can answer, before any weight is read: the model, how its weights are kept, the adapter on it."""

    base: Base
    quant: Quant
    adapter_folder: Path | None
    template: TemplateOptions
    recipe: Recipe | None  # of a run
    allow_other_base: bool = False  # than the adapter was trained on, or the same kept in another way

    def load(self) -> tuple[CausalLM, Adapter | None, dict[str, Any]]:
        """(model, the adapter on it, the adapter's identity)."""
        model, folder = self.base.load(self.quant), self.adapter_folder
        if folder is None:
            return model, None, {}
        adapter, identity = attach(model, self.base, folder, self.quant, allow_other_base=self.allow_other_base)
        return model, adapter, identity

    def other_base(self) -> dict[str, Any]:
        """What the adapter was trained on, where that is not what it lies on here; else {}."""
        if self.adapter_folder is None:
            return {}
        known = storage.read_identity(self.adapter_folder)
        if not storage.differences(known, self.base.checkpoint, self.quant, self.adapter_folder):
            return {}
        return {name: known.get(name) for name in ("base", "base_fingerprint", "quant")}


def locate(path: str | Path, changed: Mapping[str, Any] | None = None, *, allow_other_base: bool = False) -> Located:
    """Find a run, an adapter folder or a model. `changed`: options of the recipe's section `model`."""
    folder = Path(path)
    quant: Quant = NoQuant()
    where, recipe = None, None
    allowed = bool((changed or {}).get("allow_code"))
    if (folder / "recipe.yaml").is_file():
        recipe = load_run(folder, model=changed)
        options, quant, template = recipe.model, recipe.quant, recipe.data.template
        where = run_state.trained_adapter(folder)
    elif (folder / storage.CONFIG).is_file():
        identity = storage.read_identity(folder)
        where = folder
        options = ModelOptions(path=_base_of(folder), add_tokens=identity.get("add_tokens", []))
        template = storage.read_template(folder, allow_code=allowed) or Jinja()
        quant = storage.read_quant(identity, folder, allow_code=allowed) or NoQuant()
    else:
        options = ModelOptions(path=str(path))
        template = storage.read_template(folder, allow_code=allowed) or Jinja()
    base = open_base(options.model_copy(update=dict(changed or {})))
    if isinstance(quant, NoQuant) and not quant.dequantize:
        quant = fitting(quant, base.checkpoint)  # as it is stored, where nobody has said
    return Located(base, quant, where, template, recipe, allow_other_base)


def open_any(
    path: str | Path, changed: Mapping[str, Any] | None = None, *, allow_other_base: bool = False
) -> tuple[Engine, Base, Adapter | None, dict[str, Any]]:
    """(engine, base, adapter, identity) of whatever can answer."""
    located = locate(path, changed, allow_other_base=allow_other_base)
    base, where = located.base, located.adapter_folder
    template = located.template.bind(base.tokenizer)
    model, adapter, identity = located.load()
    if identity and identity.get("template_fingerprint") not in (None, template.fingerprint):
        raise CheckpointError(
            "the template differs from the one the adapter was trained with",
            given=template.fingerprint[:12],
            allowed=identity["template_fingerprint"][:12],
        )
    weights = base.checkpoint.fingerprint() + (sha256_file(where / storage.WEIGHTS) if where else "")
    known = base.checkpoint, located.quant
    return Engine(model, base.tokenizer, template, f"{weights} {model.dtype}", known), base, adapter, identity


def _base_of(folder: Path) -> str:
    """The model that an adapter folder names: a folder inside it, or whatever `resolve` finds."""
    named = storage.read_json(folder / storage.CONFIG).get("base_model_name_or_path")
    if not named:
        raise CheckpointError(
            f"the adapter in {folder} does not say which model it belongs to",
            given=f"no base_model_name_or_path in {storage.CONFIG}",
            try_="write the model's path there",
        )
    inside = folder / str(named)
    return str(inside) if not Path(str(named)).is_absolute() and inside.is_dir() else str(named)
