"""Folders whose linears are stored as GPTQ: taken over byte for byte, or refused with the reason."""

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

from lorikeet.base.errors import CheckpointError, LorikeetError, RecipeError
from lorikeet.checkpoints import hf
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.load import load
from lorikeet.ops.attention import PackedView
from lorikeet.quant._contract import Quant
from lorikeet.quant.gptq import Gptq, GptqWeight
from lorikeet.quant.int8 import Int8
from lorikeet.quant.none import NoQuant

CPU = torch.device("cpu")
DEQUANTISED = NoQuant(dequantize=True)


def quantised(source: Path, folder: Path, quant: Gptq, *, dense: tuple[str, ...] = ()) -> Path:
    """A copy of the model with its linears rounded to nearest and stored as GPTQ, but those whose name ends so."""
    folder.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        linear = name.removesuffix(".weight")
        if linear.endswith("_proj") and not linear.endswith(dense or ("none",)):
            parts = quant.freeze(tensor).give(0, len(tensor))
            assert parts is not None
            tensors |= {f"{linear}.{part}": value for part, value in parts.items()}
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = quant.stored_settings(torch.float32)
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_text((source / file).read_text())
    return folder


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return quantised(tiny_model, tmp_path / "gptq", Gptq(bits=4, group_size=32))


def _load(folder: Path, quant: Quant | None = None) -> CausalLM:
    return load(open_checkpoint(folder), quant or NoQuant(), dtype=torch.float32, device=CPU)


def _hidden(model: CausalLM) -> Tensor:
    tokens = torch.arange(3, 43)
    return model.hidden(tokens, torch.arange(40), PackedView(torch.full((40,), 40), torch.arange(40)))


def test_a_gptq_folder_is_kept_as_it_is_stored(folder: Path, tiny_model: Path):
    model = _load(folder)
    stored = load_file(folder / "model.safetensors")
    assert all(isinstance(group.weight, GptqWeight) for group in model.groups())
    for name, linear in model.linears():
        parts = linear.give()
        assert parts is not None
        assert all(torch.equal(parts[part], stored[f"{name}.{part}"]) for part in parts)
    assert (_hidden(model) - _hidden(_load(tiny_model))).abs().max() > 1e-3  # it is another model than the dense one
    for quant in (Gptq(), Gptq.model_validate({"bits": 4, "group_size": 32})):
        assert torch.equal(_hidden(_load(folder, quant)), _hidden(model))


def test_dequantise_makes_it_dense(folder: Path):
    dense = _load(folder, DEQUANTISED)
    assert not any(isinstance(group.weight, GptqWeight) for group in dense.groups())
    torch.testing.assert_close(_hidden(dense), _hidden(_load(folder)), rtol=0, atol=1e-5)


def test_linears_that_are_stored_dense_stay_dense(tiny_model: Path, tmp_path: Path):
    mixed = quantised(tiny_model, tmp_path / "mixed", Gptq(bits=8, group_size=32), dense=("down_proj", "k_proj"))
    model, whole = _load(mixed), load_file(tiny_model / "model.safetensors")
    for name, linear in model.linears():
        is_quantised = isinstance(next(linear._weight[0].parameters()), Tensor) and linear.stored_dtype == torch.uint8
        assert is_quantised == name.endswith(("o_proj", "gate_proj", "up_proj")), name  # q and v share k's storage
        if name.endswith(("down_proj", "k_proj")):
            assert torch.equal(linear.dense(torch.float32), whole[f"{name}.weight"])


def test_a_head_that_is_stored_quantised_becomes_dense(tiny_model: Path, tmp_path: Path):
    """gptqmodel and bitsandbytes can be told to quantise it; here it stays dense, with the numbers it stands for."""
    folder = tmp_path / "folder"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    kept = Int8().freeze(torch.randn_like(tensors["model.embed_tokens.weight"]))
    parts = kept.give(0, kept.out_features)
    assert parts is not None
    tensors |= {f"lm_head.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"load_in_8bit": True}}
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert torch.equal(_load(folder).head.weight, kept.dense(torch.float32))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(CheckpointError, match="ties the head to the embedding"):
        _load(folder)


def test_shards_and_autogptq_s_own_settings_file(folder: Path, tmp_path: Path):
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("quantization_config")
    hf.save(sharded, config, load_file(folder / "model.safetensors").items(), max_shard_bytes=40_000)
    assert len(list(sharded.glob("*.safetensors"))) > 2
    del settings["quant_method"], settings["checkpoint_format"]
    (sharded / "quantize_config.json").write_text(json.dumps(settings))
    assert torch.equal(_hidden(_load(sharded)), _hidden(_load(folder)))
    next(sharded.glob("*-00002-*")).unlink()
    with pytest.raises(CheckpointError, match="shards are missing"):
        _load(sharded)


def _change(folder: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    change(tensors, config["quantization_config"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


Q = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors, settings: settings.update(group_size=16), "q_proj: 'qzeros'|'qzeros' has another shape"),
        (lambda tensors, settings: settings.update(bits=8), "'qweight' has another shape"),
        (lambda tensors, settings: settings.update(bits=6), "no such bits"),
        (lambda tensors, settings: settings.update(quant_method="awq"), "quantised in a way that is not read"),
        (lambda tensors, settings: settings.update(checkpoint_format="marlin"), "no such checkpoint_format"),
        (lambda tensors, settings: tensors.pop(f"{Q}.scales"), "no 'scales'"),
        (lambda tensors, settings: [tensors.pop(f"{Q}.{part}") for part in ("qweight", "qzeros", "scales", "g_idx")],
         "no tensor"),
        (lambda tensors, settings: tensors[f"{Q}.g_idx"].fill_(9), "group that is not there"),
        (lambda tensors, settings: settings.update(dynamic={"+:.*mlp.*": {"bits": 8}}), "one number of bits"),
    ],
)  # fmt: skip
def test_a_folder_that_does_not_fit_itself_is_refused(folder: Path, change, said):
    _change(folder, change)
    with pytest.raises(LorikeetError, match=said):
        _load(folder)


def test_there_is_nothing_to_dequantise_in_a_dense_model(tiny_model: Path):
    with pytest.raises(RecipeError, match="has no effect, because the model"):
        _load(tiny_model, DEQUANTISED)


@pytest.mark.parametrize(
    "said", [{"quant_method": "gptq", "bits": 4}, {"load_in_8bit": True}, {"quant_method": "awq"}], ids=str
)
def test_dense_weights_stay_dense_whatever_config_json_still_says(tiny_model: Path, tmp_path: Path, said):
    """A folder that was made dense, with its old quantization_config: nobody asked for rounding it again."""
    dense = tmp_path / "dense"
    shutil.copytree(tiny_model, dense)
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    model = _load(dense)
    assert all(linear.stored_dtype == torch.float32 for _, linear in model.linears())
    assert torch.equal(_hidden(model), _hidden(_load(tiny_model)))
    rounded = _load(dense, Int8())  # and it may be quantised like any other
    assert all(linear.stored_dtype == torch.int8 for _, linear in rounded.linears())


@pytest.mark.parametrize(
    ("quant", "said"),
    [
        (Int8(), "stored as gptq"),
        (Gptq.model_validate({"bits": 8}), "quant.bits"),
        (Gptq.model_validate({"group_size": 64}), "quant.group_size"),
        (Gptq.model_validate({"target_modules": ["down_proj"]}), "quant.target_modules"),
    ],
)
def test_asking_for_another_quantisation_than_it_is_stored_in_is_refused(folder: Path, quant: Quant, said: str):
    with pytest.raises(RecipeError, match=said) as error:
        _load(folder, quant)
    if said == "stored as gptq":  # said whole: what the recipe says of its own kind goes with it
        assert error.value.try_ == "the unquantised model, or quant=gptq"


def test_g_idx_may_be_missing_from_the_whole_folder(folder: Path):
    wanted = _hidden(_load(folder))
    _change(folder, lambda tensors, _: [tensors.pop(name) for name in list(tensors) if name.endswith("g_idx")])
    assert torch.equal(_hidden(_load(folder)), wanted)
