"""Adapters on disk, in PEFT's layout: adapter_config.json and adapter_model.safetensors, with lorikeet.json beside.

lorikeet.json names, by hash, the base, tokenizer and template the adapter was trained with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorikeet.adapters._contract import Adapter
from lorikeet.base.errors import CheckpointError
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.models.causal_lm import CausalLM

WEIGHTS, CONFIG, IDENTITY = "adapter_model.safetensors", "adapter_config.json", "lorikeet.json"


def save_adapter(folder: Path, adapter: Adapter, model: CausalLM, identity: dict[str, Any]) -> None:
    """Write the adapter's files into an existing `folder`, then read them back and compare."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in adapter.parameters(model).items()}
    config = adapter.peft_config(model) | {"base_model_name_or_path": identity.get("base", "")}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (folder / IDENTITY).write_text(json.dumps(identity, indent=2) + "\n")
    again = load_file(folder / WEIGHTS)
    same = again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)
    if not same:
        raise CheckpointError(f"the adapter written to {folder} reads back differently", try_="check the disk")


def read_adapter(folder: Path) -> tuple[Adapter, dict[str, Tensor], dict[str, Any]]:
    """(options, tensors, identity) of an adapter folder, ours or PEFT's. Raises CheckpointError for a broken one."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"no {name} in {folder}", given=str(folder), allowed="a folder with an adapter in PEFT's layout")  # fmt: skip
    try:
        config = json.loads((folder / CONFIG).read_text())
        tensors = load_file(folder / WEIGHTS)
        identity_file = folder / IDENTITY
        identity = json.loads(identity_file.read_text()) if identity_file.is_file() else {}
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise CheckpointError(f"the adapter in {folder} is damaged", given=error) from error
    return _options(config), tensors, identity


def _options(config: dict[str, Any]) -> Adapter:
    classes = [kind_class("lorikeet.adapters", Adapter, name) for name in kinds("lorikeet.adapters")]
    for cls in classes:
        if cls.peft_type == config.get("peft_type"):
            return cls.from_peft(config)
    known = " ".join(cls.peft_type for cls in classes)
    raise CheckpointError("an adapter of a kind that is not supported", given=config.get("peft_type"), allowed=known)


@torch.no_grad()
def fill(model: CausalLM, adapter: Adapter, tensors: dict[str, Tensor], *, source: object) -> None:
    """Copy saved tensors into an attached adapter. Raises CheckpointError unless names and shapes agree exactly."""
    parameters = adapter.parameters(model)
    missing, extra = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - parameters.keys())
    if missing or extra:
        raise CheckpointError(
            f"the adapter in {source} does not fit this model",
            given=f"{len(missing)} tensors missing, {len(extra)} unknown, e.g. {(missing + extra)[0]}",
            try_="the base model that the adapter was trained on",
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise CheckpointError(f"the adapter in {source} does not fit this model: {name}", given=tuple(tensors[name].shape), allowed=tuple(parameter.shape))  # fmt: skip
        parameter.copy_(tensors[name])
