"""The way of a user with experts: train on all of them, merge (which compares), and get replies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorikeet.models.build import Build
from lorikeet.models.load import families
from lorikeet.quant.none import NoQuant

from .conftest import Place

MIXTURES = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "norm_topk_prob": True},
}


def with_experts(place: Place, model_type: str, **sizes: Any) -> Path:
    """The tiny model's tokenizer and sizes, with random experts; `sizes` in place of those in MIXTURES."""
    folder = place.copy_model()
    (family,) = (one for one in families() if one.model_type == model_type)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "architectures": [family.architecture], **(sizes or MIXTURES[model_type])}
    model = family.network(family.spec(config), Build(NoQuant(), torch.float32, torch.device("cpu")))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    save_file(dict(model.tensors()), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("model_type", MIXTURES)
def test_train_merge_predict(model_type: str, place: Place) -> None:
    folder = with_experts(place, model_type)
    place.recipe(model={"path": str(folder)}, train={"save_steps": 2})
    place.ok("train", "recipe.yaml")
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["eval_loss"] < summary["eval_loss_before"]
    trained = load_file("run/adapter/adapter_model.safetensors")
    assert sum(".experts.3." in name for name in trained) == 2 * 3 * 2
    assert all(value.any() for name, value in trained.items() if "lora_B" in name and ".experts." not in name)
    place.ok("merge", "run", "merged", "--dtype", "float32")
    merged, base = load_file("merged/model.safetensors"), load_file(folder / "model.safetensors")
    assert merged.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert any(".experts." in name for name in changed) and not any(name.endswith(".gate.weight") for name in changed)
    place.ok("predict", "run", "tiny.jsonl", "--output", "replies.jsonl", "generate.max_new_tokens=3")
    assert any(json.loads(line)["reply"] for line in Path("replies.jsonl").read_text().splitlines())


def test_quant_kind_gptq_rounds_experts_to_the_nearest(place: Place) -> None:
    with_experts(place, "mixtral")
    place.recipe(
        model={"path": "model"},
        quant={"kind": "gptq", "group_size": 32},
        train={"max_steps": 1},
        evaluate={"samples": 0},
    )
    place.ok("train", "recipe.yaml")
