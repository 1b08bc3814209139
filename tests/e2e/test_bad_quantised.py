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


def all_of(*changes: Change) -> Change:
    """Several changes, one after the other."""

    def change(model: Path) -> None:
        for one in changes:
            one(model)

    return change


def doubly(lacks: str | None = None, tensor: dict[str, Tensor] | None = None, **said: Any) -> Change:
    """The scales of one linear in 8 bits, as bitsandbytes lays them out, but for what is changed or left out."""
    whole = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.0} | said

    def changed(held: dict[str, Tensor]) -> None:
        scales = held[f"{UP}.weight.absmax"]
        nested = {"absmax": torch.full_like(scales, 200, dtype=torch.uint8)}
        nested |= {"nested_absmax": torch.ones(1), "nested_quant_map": torch.linspace(-1, 1, 256)}
        held.update({f"{UP}.weight.{name}": one for name, one in (nested | (tensor or {})).items() if name != lacks})

    def change(model: Path) -> None:
        tensors(model, changed)
        state_of(**{name: value for name, value in whole.items() if name != lacks})(model)

    return change


def described_as(**quantization_config: Any) -> Change:
    """config.json says another way of quantising."""

    def change(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"quantization_config": quantization_config}))

    return change


def packed_otherwise(model: Path) -> None:
    """What LLM Compressor writes: a linear without a tensor `weight`."""

    def changed(held: dict[str, Tensor]) -> None:
        for name in [name for name in held if name.endswith("_proj.qweight")]:
            held[name.replace("qweight", "weight_packed")] = held.pop(name)
            held[name.replace("qweight", "weight_scale")] = held.pop(name.replace("qweight", "scales"))
            del held[name.replace("qweight", "qzeros")], held[name.replace("qweight", "g_idx")]

    for file in model.glob("*.safetensors"):
        held = load_file(file)
        changed(held)
        save_file(held, file)
    index = model / "model.safetensors.index.json"
    where = {name: file.name for file in model.glob("*.safetensors") for name in load_file(file)}
    index.write_text(json.dumps({"weight_map": where}))
    described_as(quant_method="compressed-tensors", format="pack-quantized")(model)


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
    ("gptq", "zero points cut off", replaced("qzeros", lambda zeros: zeros[:, :-1]), f"CheckpointError: {UP}: 'qzeros'", ["(2, 15)", "(2, 16)"]),
    ("gptq", "a group below the first", replaced("g_idx", lambda order: order - 1), f"CheckpointError: {UP}: 'g_idx'", ["-1 to 0", "0 to 1"]),
    ("gptq", "groups that are no whole numbers", replaced("g_idx", lambda order: order * torch.nan), f"CheckpointError: {UP}: 'g_idx'", ["float32", "int32"]),
    ("gptq", "scales that are whole numbers", replaced("scales", lambda scales: scales.int()), f"CheckpointError: {UP}: 'scales'", ["int32", "float16"]),
    ("gptq", "scales in 8 bits", replaced("scales", lambda scales: scales.to(torch.float8_e4m3fn)), f"CheckpointError: {UP}: 'scales'", ["float8_e4m3fn", "float16"]),
    ("gptq", "columns sorted, and their groups not named", all_of(settings(desc_act=True), part_gone("g_idx")), f"CheckpointError: {UP}: no 'g_idx'", ["desc_act"]),
    ("gptq", "bits as a text", settings(bits="4"), "CheckpointError: model: GPTQ's format", ['given    "4"']),
    ("gptq", "no group size", described_as(quant_method="gptq", bits=4, group_size=None), "CheckpointError: model: GPTQ's format", ["group_size", "given    null"]),
    ("gptq", "a layout in planes", settings(checkpoint_format="gptq_p"), "CheckpointError: model: GPTQ's format", ["gptq_p", "gptq gptq_v2"]),
    ("gptq", "Marlin's layout", settings(checkpoint_format=None, is_marlin_format=True), "CheckpointError: model: GPTQ's format", ["marlin"]),
    ("gptq", "rules that are a list", settings(dynamic=["up_proj"]), "CheckpointError: model: ", ["dynamic", "up_proj"]),
    ("gptq", "described as bitsandbytes'", described_as(quant_method="bitsandbytes", load_in_8bit=True), "CheckpointError: model: the weights are quantised", ["bitsandbytes", "I32"]),
    ("gptq", "fp8", settings(quant_method="fp8"), "CheckpointError: model: the weights are quantised", ["fp8"]),
    ("gptq", "mxfp4", settings(quant_method="mxfp4"), "CheckpointError: model: the weights are quantised", ["mxfp4"]),
    ("gptq", "compressed-tensors", packed_otherwise, "CheckpointError: model: the weights are quantised", ["compressed-tensors", "weight_packed' is I32"]),
    ("nf4", "a shard missing", shard_gone, "CheckpointError: model: 1 of ", ["shards are missing"]),
    ("nf4", "codes of another type", replaced("weight", lambda codes: codes.float()), f"CheckpointError: {UP}: ", ["float32", "uint8"]),
    ("nf4", "no codes", part_gone("weight"), f"CheckpointError: {UP}: ", ["with weight"]),
    ("nf4", "no table", part_gone("weight.quant_map"), f"CheckpointError: {UP}: ", ["weight.quant_map"]),
    ("nf4", "another table", replaced("weight.quant_map", lambda table: table / 2), f"CheckpointError: {UP}: ", ["quant_map", "nf4"]),
    ("nf4", "half a table", replaced("weight.quant_map", lambda table: table[:8]), f"CheckpointError: {UP}: ", ["quant_map"]),
    ("nf4", "no state", part_gone(STATE), f"CheckpointError: {UP}: ", [STATE]),
    ("nf4", "a state of another kind", state_of(quant_type="fp4"), f"CheckpointError: {UP}: ", ["fp4", "nf4"]),
    ("nf4", "described as fp4", settings(bnb_4bit_quant_type="fp4"), "CheckpointError: model.layers.0", ["bitsandbytes__fp4"]),
    ("nf4", "described as int8", settings(load_in_4bit=False, load_in_8bit=True), "CheckpointError: model: the weights are quantised", ["bitsandbytes", "U8"]),
    ("nf4", "described as GPTQ", described_as(quant_method="gptq", bits=4), "CheckpointError: model: the weights are quantised", ["gptq", "U8"]),
    ("nf4", "blocks of nothing", settings(bnb_4bit_blocksize=0), "CheckpointError: model: ", ["given    0", "32 64"]),
    ("nf4", "scales of another type", replaced("weight.absmax", lambda scales: scales.int()), f"CheckpointError: {UP}: ", ["int32", "float32"]),
    ("nf4", "saved after an evaluation", replaced("weight.absmax", lambda scales: scales.view(128, 2).T.bfloat16()), f"CheckpointError: {UP}: ", ["bfloat16 (2, 128)", "before it has evaluated"]),
    ("nf4", "doubly: no second scales", doubly("nested_absmax"), f"CheckpointError: {UP}: ", ["with weight.nested_absmax"]),
    ("nf4", "doubly: no second table", doubly("nested_quant_map"), f"CheckpointError: {UP}: ", ["with weight.nested_quant_map"]),
    ("nf4", "doubly: no offset", doubly("nested_offset"), f"CheckpointError: {UP}: the quant_state", ["nested_offset"]),
    ("nf4", "doubly: an offset that is none", doubly(nested_offset="x"), f"CheckpointError: {UP}: the quant_state", ["'x'"]),
    ("nf4", "doubly: an offset beyond all", doubly(nested_offset=float("inf")), f"CheckpointError: {UP}: the scales", ["finite"]),
    ("nf4", "doubly: blocks of nothing", doubly(nested_blocksize=0), f"CheckpointError: {UP}: ", ["nested_blocksize 0"]),
    ("nf4", "doubly: too few second scales", doubly(nested_blocksize=64), f"CheckpointError: {UP}: ", ["1 nested", "4"]),
    ("nf4", "doubly: too many second scales", doubly(tensor={"nested_absmax": torch.ones(5)}), f"CheckpointError: {UP}: ", ["5 nested", "1"]),
    ("nf4", "doubly: half a table", doubly(tensor={"nested_quant_map": torch.ones(128)}), f"CheckpointError: {UP}: ", ["nested_quant_map", "128", "256"]),
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
    ("int8", "no scales, and nothing else of a quantised linear", all_of(part_gone("SCB"), part_gone("weight_format")), "CheckpointError: model: the weights are quantised", [f"'{UP}.weight' is I8"]),
    ("int8", "scales that are whole numbers", replaced("SCB", lambda scales: scales.int()), f"CheckpointError: {UP}: ", ["int32", "float32"]),
    ("int8", "scales that are NaN", replaced("SCB", lambda scales: scales * torch.nan), f"CheckpointError: {UP}: the scales 'SCB'", ["finite"]),
    ("int8", "a layout for tensor cores", replaced("weight_format", lambda layout: layout + 2), f"CheckpointError: {UP}: ", ["weight_format 2"]),
    ("int8", "no layout in its place", replaced("weight_format", lambda layout: layout.view(1)[:0]), f"CheckpointError: {UP}: ", ["weight_format"]),
    ("int8", "described as nf4", settings(load_in_8bit=False, load_in_4bit=True, bnb_4bit_quant_type="nf4"), "CheckpointError: model: the weights are quantised", ["bitsandbytes", "I8"]),
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


def test_what_makes_all_weights_train_is_told(stored: dict[str, Path], place: Place) -> None:
    """Of a model that is stored quantised, quant.kind=none would keep it so."""
    shutil.copytree(stored["nf4"], place.folder / "model")
    advice = "quant='{kind: none, dequantize: true}'"
    whole, part = {"kind": "full", "r": "-"}, {"kind": "full", "r": "-", "target_modules": ["q_proj"]}
    for adapter, error in ((whole, "quant.kind: quantised weights"), (part, "adapter.target_modules: quantised")):
        place.recipe(model={"path": "model"}, adapter=adapter, evaluate={"samples": 0})
        place.refused("train recipe.yaml", f"RecipeError: {error}", advice)
        place.refused("plan recipe.yaml", f"RecipeError: {error}", advice)
    place.ok("train", "recipe.yaml", "quant={kind: none, dequantize: true}", "train.max_steps=1")
