"""Adapters on disk, in PEFT's layout: adapter_config.json and adapter_model.safetensors, with lorikeet.json beside.

lorikeet.json names, by hash, the base, tokenizer and template the adapter was trained with.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._new_tokens import around, from_config
from lorikeet.base import known_code
from lorikeet.base.errors import CheckpointError
from lorikeet.base.files import sha256_file
from lorikeet.base.kinds import is_named, kind_class, kind_field, kinds, own_kinds
from lorikeet.base.log import note
from lorikeet.base.options import Options
from lorikeet.base.tensor_file import finite, save_tensors
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.data.templates._contract import TemplateOptions
from lorikeet.models.causal_lm import CausalLM
from lorikeet.quant._contract import Quant

OptionsType = TypeVar("OptionsType", bound=Options)
WEIGHTS, CONFIG, IDENTITY = "adapter_model.safetensors", "adapter_config.json", "lorikeet.json"
RESUMED = "adapter_training.safetensors"  # in checkpoints, for kinds that train something else than they save


def save_adapter(
    folder: Path, adapter: Adapter, model: CausalLM, identity: dict[str, Any], *, final: bool = True
) -> None:
    """Write the adapter's files into an existing `folder`, then read them back and compare. Where it is not `final`,
    with what only going on with training needs."""
    tensors = _copies(adapter.tensors(model))
    if not final and (more := _copies(adapter.resumed(model))):
        save_tensors(more, folder / RESUMED)
    config = adapter.peft_config(model) | {"base_model_name_or_path": identity.get("base", "")}
    identity = identity | {"kind": _kind(adapter)}
    save_tensors(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / IDENTITY).write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """For a file: parts of one parameter share its memory, which safetensors refuses."""
    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return {name: one if one.untyped_storage().nbytes() == one.nbytes else one.clone() for name, one in ready.items()}


def read_training(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter that is to be trained on. Raises CheckpointError for a broken folder."""
    file = folder / RESUMED
    more = _load(file) if file.is_file() else {}
    return read_adapter(folder)[1] | more


def read_adapter(folder: Path) -> tuple[Adapter, dict[str, Tensor], dict[str, Any]]:
    """(options, tensors, identity) of an adapter folder, ours or PEFT's. Raises CheckpointError for a broken one."""
    _need_files(folder)
    config, identity = read_json(folder / CONFIG), read_identity(folder)
    return _options(config, identity, folder), _load(folder / WEIGHTS), identity


def _need_files(folder: Path) -> None:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"no {name} in {folder}", given=str(folder), allowed="a folder with an adapter in PEFT's layout"
            )


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise damaged(file, error) from error


def read_options(folder: Path) -> Adapter:
    """What `read_adapter` says of the options, without the tensors. Raises CheckpointError."""
    _need_files(folder)
    return _options(read_json(folder / CONFIG), read_identity(folder), folder)


def read_json(file: Path) -> dict[str, Any]:
    """The object in one of an adapter's JSON files; {} where there is no such file. Raises CheckpointError."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON and bad UTF-8
        raise damaged(file, error) from error
    if not isinstance(content, dict):
        raise damaged(file, f"a {type(content).__name__}, not an object")
    return content


def hashes(folder: Path) -> dict[str, str]:
    """What an adapter is, for a record that may be compared later: its tensors, and its settings (its scale is one of
    them) but for the name of the base, which a copy may say otherwise. Raises CheckpointError."""
    settings = {name: value for name, value in read_json(folder / CONFIG).items() if name != "base_model_name_or_path"}
    said = json.dumps(settings, sort_keys=True).encode()
    return {
        "adapter_sha256": sha256_file(folder / WEIGHTS),
        "adapter_settings_sha256": hashlib.sha256(said).hexdigest(),
    }


def read_identity(folder: Path) -> dict[str, Any]:
    """lorikeet.json; {} where there is none. Raises CheckpointError for a file that ours never are."""
    said = read_json(folder / IDENTITY)
    for key in [one for one in said if one in ("base", "system") or one.endswith("_fingerprint")]:
        if not isinstance(said[key], str | None):
            raise damaged(folder / IDENTITY, f"{key} is {said[key]}, no text")
    tokens = said.get("add_tokens", [])
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise damaged(folder / IDENTITY, f"add_tokens is {tokens}, no list of texts")
    return said


def damaged(file: Path, reason: object) -> CheckpointError:
    """The error about one of an adapter's files."""
    what = f"the adapter in {file.parent} is damaged"
    return CheckpointError(what, given=f"{file.name}: {reason}", try_="another copy of it")


def _kind(adapter: Adapter) -> str:
    return str(adapter.model_dump()["kind"])


def _options(config: dict[str, Any], identity: dict[str, Any], folder: Path) -> Adapter:
    config, tokens = from_config(config)
    classes = _readers(identity)
    for cls in classes:
        if cls.reads(config):
            try:
                return around(cls.from_peft(config), tokens)
            except (KeyError, ValueError) as error:  # a setting is missing, or pydantic refuses it
                raise damaged(folder / CONFIG, _in_a_line(error)) from error
    known = " ".join(cls.peft_type for cls in classes)
    raise CheckpointError(
        "an adapter of a kind that is not supported",
        given=config.get("peft_type"),
        allowed=known,
        try_="where the kind is a file of your own: the run's folder, whose recipe names it",
    )


def _in_a_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{first['loc'][0] if first['loc'] else 'a setting'}: {first['msg']}"
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)


def _readers(identity: dict[str, Any]) -> list[type[Adapter]]:
    """The kinds in the order in which they are asked. Someone's own comes before ours only where lorikeet.json names
    it: what it inherits may read adapters that it never wrote."""
    own, named = own_kinds("lorikeet.adapters", Adapter), identity.get("kind")
    first = [cls for cls in own if cls.model_fields["kind"].default == named]
    ours = [kind_class("lorikeet.adapters", Adapter, name) for name in kinds("lorikeet.adapters")]
    return [*first, *ours, *(cls for cls in own if cls not in first)]


def check_base(
    identity: dict[str, Any], base: Checkpoint, quant: Quant, folder: Path, *, allow_other: bool = False
) -> None:
    """Raise CheckpointError where lorikeet.json says that the adapter was trained on other weights, by their hash, or
    on the same ones rounded otherwise than `quant` keeps them; with `allow_other`, say so instead."""
    found = differences(identity, base, quant, folder)
    if not found:
        return
    what = f"the adapter in {folder} was trained on {' and '.join(found)}"
    here, there = ("; ".join(side[i] for side in found.values()) for i in (0, 1))
    if allow_other:
        note(f"{what}: {there}. Used all the same, on {here}")
        return
    raise CheckpointError(
        what,
        given=here,
        allowed=there,
        try_="what it was trained on; --allow-other-base uses it here all the same, and evaluate measures the loss",
    )


def differences(identity: dict[str, Any], base: Checkpoint, quant: Quant, folder: Path) -> dict[str, tuple[str, str]]:
    """{what differs: (here, where the adapter was trained)}, empty where nothing is known to."""
    found, known = {}, identity.get("base_fingerprint")
    if known not in (None, base.fingerprint()):
        here, there = f"{base.path}, sha256 {base.fingerprint()[:16]}", f"{identity.get('base')}, sha256 {known[:16]}"
        found["another base model"] = here, there
    trained = read_quant(identity, folder)
    if trained is not None and trained.model_dump() != quant.model_dump():
        found["weights that were kept in another way"] = _said(quant), _said(trained)
    return found


def read_quant(identity: dict[str, Any], folder: Path, *, allow_code: bool = False) -> Quant | None:
    """How the weights were kept in training, as lorikeet.json says; None where it does not. Raises CheckpointError;
    `allow_code`: see `refuse_code`."""
    said = identity.get("quant")
    return None if said is None else _kind_said("quant", said, "lorikeet.quant", Quant, folder, allow_code)


def read_template(folder: Path, *, allow_code: bool = False) -> TemplateOptions | None:
    """The template that lorikeet.json names; None where it names none. Raises CheckpointError; `allow_code`: see
    `refuse_code`."""
    said = read_identity(folder).get("template")
    package = "lorikeet.data.templates"
    return None if said is None else _kind_said("template", said, package, TemplateOptions, folder, allow_code)


def _kind_said(
    key: str, said: object, package: str, contract: type[OptionsType], folder: Path, allow_code: bool
) -> OptionsType:
    if not allow_code:
        refuse_code(key, said, package, folder)
    try:
        read: OptionsType = TypeAdapter(kind_field(package, contract)).validate_python(said)
    except ValueError as error:  # pydantic's, too
        raise damaged(folder / IDENTITY, f"{key} is {said}") from error
    return read


def refuse_code(key: str, said: object, package: str, folder: Path) -> None:
    """Raise CheckpointError where what lorikeet.json says of a kind is a .py file that no recipe has named here: who
    gets a folder from elsewhere has not asked for code to be run, wherever it lies."""
    kind = str(said.get("kind", "")) if isinstance(said, dict) else str(said)
    if kind.endswith(".py") and not is_named(package, kind) and not known_code.known(Path(kind)):
        raise CheckpointError(
            f"{folder / IDENTITY} names code as its {key}, which would run with your rights",
            given=kind,
            allowed="a kind of Lorikeet's, or a file that a recipe of yours has named on this machine",
            try_="read the file, and say model.allow_code=true",
        )


def _said(quant: Quant) -> str:
    return "quant={" + ", ".join(f"{name}: {value}" for name, value in quant.model_dump().items()) + "}"


@torch.no_grad()
def fill(model: CausalLM, adapter: Adapter, tensors: dict[str, Tensor], *, source: object) -> None:
    """Copy saved tensors into an attached adapter. Raises CheckpointError unless names and shapes agree exactly."""
    parameters, tensors = adapter.tensors(model) | adapter.resumed(model), adapter.from_peft_tensors(model, tensors)
    missing, extra = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - parameters.keys())
    if missing or extra:
        raise CheckpointError(
            f"the adapter in {source} does not fit this model",
            given=f"{len(missing)} tensors missing, {len(extra)} unknown, e.g. {(missing + extra)[0]}",
            try_="the base model that the adapter was trained on",
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise CheckpointError(
                f"the adapter in {source} does not fit this model: {name}",
                given=tuple(tensors[name].shape),
                allowed=tuple(parameter.shape),
            )
        if not finite(tensors[name]):
            raise CheckpointError(
                f"the adapter in {source} has numbers that are NaN or infinite: {name}",
                given=f"{int((~tensors[name].isfinite()).sum())} of {tensors[name].numel()}",
                allowed="finite numbers",
                try_="an earlier checkpoint of its run",
            )
    for name, parameter in parameters.items():  # only now: an adapter that does not fit leaves nothing half filled
        parameter.copy_(tensors[name])
