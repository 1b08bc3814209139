# ruff: noqa: E501  a table of cases is read by its rows
"""Bad quantised folders: of each, one clear error on the command line, before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorikeet.adapters._merge import base_tensors
from lorikeet.checkpoints import hf
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.models.load import load
from lorikeet.quant._contract import Quant
from lorikeet.quant.gptq import Gptq
from lorikeet.quant.int8 import Int8
from lorikeet.quant.nf4 import NF4
from lorikeet.quant.none import NoQuant

from .conftest import Place

UP = "model.layers.0.mlp.up_proj"
KINDS: dict[str, Quant] = {"gptq": Gptq(group_size=32), "nf4": NF4(block_size=32), "int8": Int8()}
STATE = "weight.quant_state.bitsandbytes__nf4"
Change = Callable[[Path], None]


@pytest.fixture(scope="session")
def stored(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model, stored in each kind. Read it only."""
    made = {}
    for kind, quant in KINDS.items():
        folder = made[kind] = tmp_path_factory.mktemp(kind)
        dense = load(open_checkpoint(tiny_model), NoQuant(), dtype=torch.float32, device=torch.device("cpu"))
        config = dense.shape.config | {"quantization_config": quant.stored_settings(torch.float32), "dtype": "float32"}
        hf.save(
            folder,
            json.loads(json.dumps(config)),
            base_tensors(dense, torch.float32, into=quant),
            max_shard_bytes=60_000,
        )
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tiny_model / name, folder / name)
    return made


def tensors(model: Path, changed: Callable[[dict[str, Tensor]], Any], name: str = UP) -> None:
    """Change the tensors of the shard that `name` lies in."""
    for file in model.glob("*.safetensors"):
        held = load_file(file)
        if any(key.startswith(name) for key in held):
            changed(held)
            save_file(held, file)
            return
    raise AssertionError(name)


def replaced(part: str, change: Callable[[Tensor], Tensor]) -> Change:
    """A part of one linear made anew."""

    def changed(held: dict[str, Tensor]) -> None:
        held[f"{UP}.{part}"] = change(held[f"{UP}.{part}"]).contiguous()

    return lambda model: tensors(model, changed)


def settings(**changes: Any) -> Change:
    """Change config.json's quantization_config; None removes a key."""

    def change(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        made = config["quantization_config"] | changes
        config["quantization_config"] = {key: value for key, value in made.items() if value is not None}
        (model / "config.json").write_text(json.dumps(config))

    return change


def unsaid(model: Path) -> None:
    """The folder does not say that it is quantised."""
    config = json.loads((model / "config.json").read_text())
    del config["quantization_config"]
    (model / "config.json").write_text(json.dumps(config))


def shard_gone(model: Path) -> None:
    sorted(model.glob("model-*.safetensors"))[1].unlink()


def shard_cut(model: Path) -> None:
    file = sorted(model.glob("model-*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def part_gone(part: str) -> Change:
    """A tensor that the index does not promise either."""

    def change(model: Path) -> None:
        tensors(model, lambda held: held.pop(f"{UP}.{part}"))
        index = model / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        del content["weight_map"][f"{UP}.{part}"]
        index.write_text(json.dumps(content))

    return change


def state_of(**changes: Any) -> Change:
    """Change what bitsandbytes says of a weight in 4 bits."""

    def changed(state: Tensor) -> Tensor:
        said = json.dumps(json.loads(bytes(state.tolist())) | changes)
        return torch.frombuffer(bytearray(said.encode()), dtype=torch.uint8)

    return replaced(STATE, changed)


# kind, what is wrong, how it comes to be, how the error begins, what else it says
BAD: list[tuple[str, str, Change, str, list[str]]] = [
    ("gptq", "a shard missing", shard_gone, "CheckpointError: model: 1 of ", ["shards are missing", "model-00002-of-"]),
    ("gptq", "a shard cut off", shard_cut, "CheckpointError: ", ["model-00002-of-"]),
    ("gptq", "another group size", settings(group_size=64), "CheckpointError: model.layers.0", ["group_size 64", "given", "allowed"]),
    ("gptq", "whole rows as groups", settings(group_size=-1), "CheckpointError: model.layers.0", ["group_size", "qzeros"]),
    ("gptq", "other bits", settings(bits=8), "CheckpointError: model.layers.0", ["8 bits"]),
    ("gptq", "bits the format lacks", settings(bits=5), "CheckpointError: model: GPTQ's format", ["given    5", "2 3 4 8"]),
    ("gptq", "no bits", settings(bits=None), "CheckpointError: model: ", ["no 'bits'"]),
    ("gptq", "a group size in words", settings(group_size="many"), "CheckpointError: model: GPTQ's format", ["group_size", "many"]),
    ("gptq", "zero points of a third kind", settings(checkpoint_format="v3"), "CheckpointError: model: GPTQ's format", ["v3", "gptq gptq_v2"]),
    ("gptq", "bits of their own for some", settings(dynamic={"up_proj": {"bits": 8}}), "CheckpointError: model: ", ["up_proj"]),
    ("gptq", "codes cut off", replaced("qweight", lambda codes: codes[:-1]), f"CheckpointError: {UP}: 'qweight'", ["(7, 128)", "(8, 128)"]),
    ("gptq", "codes of another type", replaced("qweight", lambda codes: codes.float()), f"CheckpointError: {UP}: 'qweight'", ["float32", "int32"]),
    ("gptq", "zero points of another type", replaced("qzeros", lambda zeros: zeros.long()), f"CheckpointError: {UP}: 'qzeros'", ["int64", "int32"]),
    ("gptq", "scales cut off", replaced("scales", lambda scales: scales[:, :-1]), f"CheckpointError: {UP}: 'scales'", ["(2, 127)"]),
    ("gptq", "scales beyond all", replaced("scales", lambda scales: scales * torch.inf), f"CheckpointError: {UP}: 'scales'", ["finite"]),
    ("gptq", "no scales", part_gone("scales"), f"CheckpointError: {UP}: no 'scales'", ["qweight"]),
    ("gptq", "no codes", part_gone("qweight"), f"CheckpointError: {UP}: no 'qweight'", ["scales"]),
    ("gptq", "a group that is not there", replaced("g_idx", lambda order: order + 1), f"CheckpointError: {UP}: 'g_idx'", ["0 to 1"]),
    ("gptq", "quantised and not said", unsaid, "CheckpointError: model: the weights are quantised", ["no quantization_config"]),
    ("gptq", "another method", settings(quant_method="awq"), "CheckpointError: model: the weights are quantised", ["awq"]),
    ("nf4", "a shard missing", shard_gone, "CheckpointError: model: 1 of ", ["shards are missing"]),
    ("nf4", "codes cut off", replaced("weight", lambda codes: codes[:-1]), f"CheckpointError: {UP}: ", ["bytes"]),
    ("nf4", "scales cut off", replaced("weight.absmax", lambda scales: scales[:-1]), f"CheckpointError: {UP}: ", ["255 scales", "256"]),
    ("nf4", "scales beyond all", replaced("weight.absmax", lambda scales: scales / 0), f"CheckpointError: {UP}: the scales 'absmax'", ["finite"]),
    ("nf4", "other blocks", settings(bnb_4bit_blocksize=64), "CheckpointError: model.layers.0", ["blocks of 32", "blocks of 64"]),
    ("nf4", "blocks the format lacks", settings(bnb_4bit_blocksize=48), "CheckpointError: model: ", ["48", "32 64"]),
    ("nf4", "a state of another shape", state_of(shape=[64, 128]), f"CheckpointError: {UP}: ", ["(64, 128)", "(128, 64)"]),
    ("nf4", "a state that is no JSON", replaced(STATE, lambda state: state[:-3]), f"CheckpointError: {UP}: the quant_state", ["damaged"]),
    ("nf4", "a state that lacks its size", state_of(blocksize=None), f"CheckpointError: {UP}: ", []),
    ("nf4", "no scales", part_gone("weight.absmax"), f"CheckpointError: {UP}: ", ["weight.absmax"]),
    ("nf4", "a kind that is not read", settings(bnb_4bit_quant_type="af4"), "CheckpointError: model: bitsandbytes' format", ["af4", "nf4 or fp4"]),
    ("int8", "no scales", part_gone("SCB"), f"CheckpointError: {UP}: ", ["SCB"]),
    ("int8", "scales cut off", replaced("SCB", lambda scales: scales[:-1]), f"CheckpointError: {UP}: ", ["(127,)"]),
    ("int8", "codes cut off", replaced("weight", lambda codes: codes[:-1]), f"CheckpointError: {UP}: ", ["(127, 64)"]),
    ("int8", "quantised and not said", unsaid, "CheckpointError: model: the weights are quantised", ["I8"]),
]  # fmt: skip


@pytest.mark.parametrize(
    "kind, change, error, facts", [(one[0], *one[2:]) for one in BAD], ids=[f"{one[0]}: {one[1]}" for one in BAD]
)
def test_a_folder_that_cannot_be_read(
    kind: str, change: Change, error: str, facts: list[str], stored: dict[str, Path], place: Place
) -> None:
    shutil.copytree(stored[kind], place.folder / "model")
    change(place.folder / "model")
    words = [
        "predict",
        "model",
        "tiny.jsonl",
        "generate.max_new_tokens=1",
        "model.dtype=float32",
        "--output",
        "replies.jsonl",
    ]
    place.refused(words, error, *facts)


COMMANDS = ["train recipe.yaml", "evaluate recipe.yaml", "quantize model tiny.jsonl --output out", "chat model"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_it(command: str, stored: dict[str, Path], place: Place) -> None:
    shutil.copytree(stored["gptq"], place.folder / "model")
    place.recipe(model={"path": "model"}, evaluate={"samples": 0})
    shard_gone(place.folder / "model")
    place.refused(command, "CheckpointError: ", "1 of 3 shards are missing")


def test_a_run_whose_quantised_base_was_damaged_later(stored: dict[str, Path], place: Place) -> None:
    """What was a base of a finished run cannot be merged, resumed or asked any more."""
    shutil.copytree(stored["gptq"], place.folder / "model")
    place.ok("train", place.recipe(model={"path": "model"}, evaluate={"samples": 0}, train={"max_steps": 1}))
    replaced("scales", lambda scales: scales * 2)(place.folder / "model")
    for words in (
        ["merge", "run", "merged"],
        ["predict", "run", "tiny.jsonl", "--output", "a.jsonl"],
        ["evaluate", "run"],
    ):
        place.refused(words, "CheckpointError: the adapter in ", "another base model", "sha256")


def test_what_has_nothing_to_merge(stored: dict[str, Path], place: Place) -> None:
    shutil.copytree(stored["nf4"], place.folder / "model")
    place.refused("merge model merged", "CheckpointError: model has no adapter to merge", "a run or an adapter folder")
    place.refused("merge model merged --into gptq", "CheckpointError: model has no adapter to merge")
    place.refused("merge nowhere merged", "CheckpointError: no model 'nowhere'")
