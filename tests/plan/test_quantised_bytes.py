"""The bytes of quantised weights, three ways that must agree to the byte: what `lorikeet plan` counts without reading a
weight, what the loaded network holds, and what the format says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorikeet.adapters._merge import base_tensors
from lorikeet.adapters.lora import Lora
from lorikeet.api.planning import plan
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.checkpoints import hf
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.config import parse
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.load import identify, load
from lorikeet.models.mapped_embedding import mapped_embedding
from lorikeet.models.stored import fitting
from lorikeet.plan.simulate import Network, simulate
from lorikeet.plan.steps import full_row
from lorikeet.quant._contract import Quant
from lorikeet.quant._four_bit import FourBit
from lorikeet.quant.gptq import Gptq
from lorikeet.quant.none import NoQuant
from lorikeet.train.options import TrainOptions

CPU = torch.device("cpu")
FOUR = [
    {"kind": kind, "block_size": size, "double_quant": double}
    for kind in ("nf4", "fp4")
    for size in (32, 64, 128)  # the last is wider than most rows
    for double in (False, True)
]
GPTQ = [
    {"kind": "gptq", "bits": bits, "group_size": size} for bits in (2, 3, 4, 8) for size in (32, 48, -1)
]  # 48: a partial last group
CASES: list[dict[str, Any]] = [{"kind": "none"}, {"kind": "int8"}, *FOUR, *GPTQ]
CASES += [{"kind": "nf4", "target_modules": ["down_proj"]}, {"kind": "gptq", "target_modules": ["o_proj"]}]


def named(case: dict[str, Any]) -> str:
    return "-".join(map(str, case.values()))


def of(case: dict[str, Any]) -> Quant:
    return kind_class("lorikeet.quant", Quant, case["kind"]).model_validate(case)


def foretold(checkpoint: Checkpoint, quant: Quant, dtype: torch.dtype) -> int:
    """Bytes of weights and of what quantisation keeps beside them, as `lorikeet plan` counts them."""
    family, spec = identify(checkpoint)
    network = Network(family, spec, quant, dtype, mapped_embedding(checkpoint, family, spec, dtype, CPU))
    found = simulate(network, Lora(r=2), TrainOptions(), [full_row(1, 16)]).by_kind
    return found["weights"] + found["quantisation state"]


def held(model: CausalLM) -> int:
    """Bytes of the network's parameters and buffers; a storage that several are views of counts once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def by_format(quant: Quant, rows: int, width: int, dtype: torch.dtype) -> int:
    """A weight's bytes, from the description of its kind."""
    if isinstance(quant, FourBit):
        blocks = math.ceil(width / quant.block_size)
        scales = blocks + 4 * math.ceil(blocks / 256) + 4 if quant.double_quant else 4 * blocks
        return rows * (math.ceil(width / 2) + scales)
    if isinstance(quant, Gptq):
        groups = 1 if quant.group_size == -1 else math.ceil(width / min(quant.group_size, width))
        return rows * (width * quant.bits // 8 + groups * (1 + 2))
    if isinstance(quant, NoQuant):
        return rows * width * dtype.itemsize
    assert quant.model_dump()["kind"] == "int8"
    return rows * (width + 4)


def test_every_kind_is_here() -> None:
    assert {case["kind"] for case in CASES} == set(kinds("lorikeet.quant"))


@pytest.mark.parametrize("case", CASES, ids=named)
def test_plan_loaded_and_format_agree_to_the_byte(case: dict[str, Any], tiny_model: Path) -> None:
    checkpoint, quant, dtype = open_checkpoint(tiny_model), of(case), torch.bfloat16
    model = load(checkpoint, quant, dtype=dtype, device=CPU)
    plain = load(checkpoint, NoQuant(), dtype=dtype, device=CPU)
    assert foretold(checkpoint, quant, dtype) == held(model)
    chosen = quant.model_dump().get("target_modules", "all-linear")
    saved = 0
    for _, linear in plain.linears():
        if chosen == "all-linear" or linear.name.rsplit(".", 1)[-1] in chosen:
            rows, width = linear.out_features, linear.in_features
            saved += by_format(NoQuant(), rows, width, dtype) - by_format(quant, rows, width, dtype)
    assert held(plain) - held(model) == saved
    assert saved > 0 or case["kind"] == "none"


def stored(source: Path, folder: Path, quant: Quant) -> Path:
    """The model in a folder that holds its linears as `quant` keeps them."""
    folder.mkdir()
    dense = load(open_checkpoint(source), NoQuant(), dtype=torch.float32, device=CPU)
    config = dense.shape.config | {"quantization_config": quant.stored_settings(torch.float32), "dtype": "float32"}
    hf.save(folder, json.loads(json.dumps(config)), base_tensors(dense, torch.float32, into=quant))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


@pytest.mark.parametrize(
    "case", [{"kind": "int8"}, {"kind": "nf4"}, {"kind": "fp4", "block_size": 32}, GPTQ[0], GPTQ[6]], ids=named
)
def test_a_folder_that_is_stored_quantised_too(case: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    quant, dtype = of(case), torch.float32
    checkpoint = open_checkpoint(stored(tiny_model, tmp_path / "stored", quant))
    kept = fitting(NoQuant(), checkpoint)
    model = load(checkpoint, kept, dtype=dtype, device=CPU)
    assert foretold(checkpoint, kept, dtype) == held(model)
    assert held(load(open_checkpoint(tiny_model), quant, dtype=dtype, device=CPU)) == held(model)


@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_the_group_of_each_input_where_a_file_names_it(group_size: int, tiny_model: Path, tmp_path: Path) -> None:
    """Act-order without static groups. Inputs that are all of one group need no such names."""
    quant = of({"kind": "gptq", "bits": 4, "group_size": group_size})
    folder = stored(tiny_model, tmp_path / "stored", quant)
    tensors, draws = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(".g_idx")]:
        tensors[name] = tensors[name][torch.randperm(len(tensors[name]), generator=draws)]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["desc_act"] = True
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(folder)
    kept = fitting(NoQuant(), checkpoint)
    model = load(checkpoint, kept, dtype=torch.float32, device=CPU)
    assert foretold(checkpoint, kept, torch.float32) == held(model)
    in_order = held(load(open_checkpoint(tiny_model), quant, dtype=torch.float32, device=CPU))
    named_inputs = [one.in_features for _, one in model.linears() if 0 < group_size < one.in_features]
    assert held(model) - in_order == 4 * sum(named_inputs)


@pytest.mark.parametrize("case", [{"kind": "int8"}, {"kind": "nf4", "block_size": 32}, GPTQ[0]], ids=named)
def test_linears_that_are_stored_dense_are_planned_dense(
    case: dict[str, Any], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Many quantised folders hold some: loading keeps these dense, and a plan that did not would promise too much."""
    folder = stored(tiny_model, tmp_path / "stored", of(case | {"target_modules": ["o_proj"]}))
    model = load(open_checkpoint(folder), NoQuant(), dtype=torch.bfloat16, device=CPU)
    recipe = {
        "output_dir": str(tmp_path / "run"),
        "model": {"path": str(folder), "dtype": "bfloat16", "device": "cpu", "threads": 1},
        "data": {"train": [str(tiny_data)], "max_length": 128},
    }
    found = plan(parse(recipe)).simulated.by_kind
    assert found["weights"] + found["quantisation state"] == held(model)
