"""Our folders in int8, nf4 and fp4 load in transformers with bitsandbytes, and theirs here, with the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet.adapters._merge import base_tensors
from lorikeet.api.base import open_base
from lorikeet.checkpoints import hf
from lorikeet.models.load import ModelOptions
from lorikeet.models.stored import stored_quant
from lorikeet.ops.attention import PackedView
from lorikeet.quant._contract import Quant
from lorikeet.quant.fp4 import FP4
from lorikeet.quant.int8 import Int8
from lorikeet.quant.nf4 import NF4
from lorikeet.quant.none import NoQuant

OPTIONS = {"dtype": "float32", "device": "cpu", "threads": 1, "kernels": "eager"}
IDS = [5, 17, 240, 3, 99, 123, 8, 64]


@pytest.fixture
def transformers() -> Any:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    return pytest.importorskip("transformers")


def folder_of(quant: Quant, source: Path, folder: Path) -> torch.Tensor:
    """Write `source` in `quant`; our logits of that folder [T, V]."""
    model = open_base(ModelOptions(path=str(source), **OPTIONS)).load(NoQuant())
    folder.mkdir()
    config = model.shape.config | {"quantization_config": quant.stored_settings(torch.float32), "dtype": "float32"}
    hf.save(folder, config, base_tensors(model, torch.float32, into=quant))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    again = open_base(ModelOptions(path=str(folder), **OPTIONS)).load(NoQuant())
    ids, positions = torch.tensor(IDS), torch.arange(len(IDS))
    view = PackedView(torch.full((len(IDS),), len(IDS), dtype=torch.int32), positions)
    with torch.no_grad():
        return again.head.logits(again.hidden(ids, positions, view))


@pytest.mark.slow
@pytest.mark.parametrize("quant, tolerance", [(NF4(), 1e-4), (FP4(), 1e-4), (Int8(), 0.1)], ids=["nf4", "fp4", "int8"])
def test_the_folder_in_transformers(
    quant: Quant, tolerance: float, tiny_model: Path, tmp_path: Path, transformers: Any
) -> None:
    """bitsandbytes rounds the activations of int8, too: there the weights are compared exactly, the logits roughly."""
    ours = folder_of(quant, tiny_model, tmp_path / "folder")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder", device_map="cpu")
    for module in theirs.modules():
        module.support_avx512bf16_for_cpu = False  # the packed weights of its CPU kernel are rounded once more
    layer = theirs.model.layers[0].self_attn.q_proj
    assert type(layer).__name__ == ("Linear8bitLt" if quant.model_dump()["kind"] == "int8" else "Linear4bit")
    with torch.no_grad():
        found = theirs(torch.tensor([IDS])).logits[0].float()
    assert (found - ours).abs().max() < tolerance * ours.abs().max()
    if isinstance(quant, Int8):
        model = open_base(ModelOptions(path=str(tmp_path / "folder"), **OPTIONS)).load(NoQuant())
        weight = dict(model.linears())["model.layers.0.self_attn.q_proj"].dense(torch.float32)
        scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB  # its first pass moves them
        assert torch.equal(layer.weight.data.float() * scales[:, None] * 0.007874015718698502, weight)


FOUR = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
THEIRS: list[tuple[str, dict[str, Any]]] = [
    ("nf4", FOUR | {"bnb_4bit_quant_type": "nf4"}),
    ("nf4", FOUR | {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}),
    ("fp4", FOUR | {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True}),
    ("int8", {"load_in_8bit": True}),
    ("int8", {"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head", "down_proj"]}),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind, how", THEIRS, ids=["nf4", "nf4 doubly", "fp4 doubly", "int8", "int8 but down_proj"])
def test_a_folder_of_transformers_here(
    kind: str, how: dict[str, Any], tiny_model: Path, tmp_path: Path, transformers: Any
) -> None:
    """`save_pretrained` of a model that transformers quantised while it loaded it: no `quant` section needed."""
    settings = transformers.BitsAndBytesConfig(**how)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_model, quantization_config=settings, device_map="cpu", dtype=torch.float32
    )
    theirs.save_pretrained(tmp_path / "folder")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "folder" / name).write_bytes((tiny_model / name).read_bytes())
    base = open_base(ModelOptions(path=str(tmp_path / "folder"), **OPTIONS))
    ours = dict(base.load(NoQuant()).linears())
    assert (stored := stored_quant(base.checkpoint)) is not None and stored.model_dump()["kind"] == kind
    plain = set()
    for name, linear in ours.items():
        layer = theirs.get_submodule(name)
        if type(layer).__name__ == "Linear":
            wanted = layer.weight
            plain.add(name.rsplit(".", 1)[-1])
        else:
            wanted = unpacked(layer)
        assert torch.allclose(linear.dense(torch.float32), wanted, rtol=1e-6, atol=0), name
    assert plain == ({"down_proj"} if "llm_int8_skip_modules" in how else set())


def unpacked(layer: Any) -> torch.Tensor:
    """What a layer of bitsandbytes multiplies with [out, in] float32."""
    import bitsandbytes.functional as bnb

    if type(layer).__name__ == "Linear8bitLt":
        return layer.weight.data.float() * layer.weight.SCB[:, None] * 0.007874015718698502
    made: torch.Tensor = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return made
