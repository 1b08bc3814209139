"""LoRA on experts: which targets mean them, how they start, lie on disk and are folded in, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorikeet.adapters._merge import compare, merged_tensors
from lorikeet.adapters._storage import WEIGHTS, fill, read_adapter, save_adapter
from lorikeet.adapters.lora import Lora
from lorikeet.base.errors import CheckpointError, RecipeError
from lorikeet.models.decoder import Decoder
from lorikeet.models.experts import ExpertSizes
from parity import tiny

SIZES = ExpertSizes(count=3, chosen=2, width=12, normalised=True)
EXPERTS = "model.layers.{}.mlp.experts"
PROBES = [[1, 2, 3, 4, 5], [9, 8, 7]]
SAVED = "base_model.model.model.layers.0.mlp.experts"


def network(**options: Any) -> Decoder:
    return tiny.decoder(experts=SIZES, **options)


def touched(model: Decoder) -> set[str]:
    return {name for name, linear in model.linears() if linear.adapter is not None}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("all-linear", 2 * (4 + 3 * 3)),  # not the routers
        (["q_proj", "gate"], 2 * 2),  # the router, when it is named
        (["up_proj"], 2 * 3),
        (["gate_up_proj"], 2 * 2 * 3),  # transformers' name for gates and ups
        (["experts.down_proj"], 2 * 3),
        (["layers.1.mlp.experts.down_proj"], 3),
        (r".*\.layers\.0\.mlp\.experts\.\d+\.(gate|down)_proj", 2 * 3),
    ],
)
def test_targets(target: Any, expected: int) -> None:
    model = network()
    Lora(target_modules=target).attach(model, seed=0)
    assert len(touched(model)) == expected


@pytest.mark.parametrize("target", [["experts.1.up_proj"], r".*experts\.[01]\.up_proj"])
def test_some_experts_of_a_layer_are_refused(target: Any) -> None:
    with pytest.raises(RecipeError, match="experts of a layer train together") as error:
        Lora(target_modules=target).attach(network(), seed=0)
    assert "up_proj" in str(error.value.try_)


def test_an_unknown_name_is_refused_with_what_there_is() -> None:
    with pytest.raises(RecipeError, match="no linear layer named 'w1'") as error:
        Lora(target_modules=["w1"]).attach(network(), seed=0)
    assert "up_proj" in str(error.value)


def test_it_starts_as_the_base_and_depends_on_the_seed() -> None:
    base, models = network(), [network() for _ in range(3)]
    lora = Lora(r=2)
    for model, seed in zip(models, (0, 0, 1)):
        lora.attach(model, seed=seed)
        assert compare(base, model, PROBES, 0).max_difference < 1e-12
    name = f"{SAVED}.up_proj.lora_A.weight"
    first, same, other = (lora.parameters(model)[name] for model in models)
    assert first.shape == (3, 2, 16) and torch.equal(first, same) and not torch.equal(first, other)
    assert 0.9 * 16**-0.5 < first.abs().max() <= 16**-0.5 and not torch.equal(first[0], first[1])


def test_each_expert_lies_apart_on_disk(tmp_path: Path) -> None:
    model = network()
    parameters = tiny.with_lora(model, r=2)
    assert sum(".experts." in name for name in parameters) == 2 * 3 * 2
    save_adapter(tmp_path, Lora(r=2), model, {})
    stored = load_file(tmp_path / WEIGHTS)
    assert sum(".experts." in name for name in stored) == 2 * 3 * 2 * 3
    for expert in range(3):
        found = stored[f"{SAVED}.{expert}.down_proj.lora_B.weight"]
        assert torch.equal(found, parameters[f"{SAVED}.down_proj.lora_B.weight"][expert])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    again = network()
    adapter, tensors, _ = read_adapter(tmp_path)
    adapter.attach(again, seed=5)
    fill(again, adapter, tensors, source="test")
    assert compare(model, again, PROBES, 0).max_difference == 0


@pytest.mark.parametrize("target", ["all-linear", ["down_proj"], ["gate_proj"], ["gate", "up_proj"]])
def test_merged_equals_base_and_adapter(target: Any) -> None:
    """In float64, where no rounding hides a difference."""
    model, merged, base = (network(tied=False) for _ in range(3))
    tiny.with_lora(model, target_modules=target)
    found = dict(merged_tensors(model, Lora(r=3, target_modules=target), torch.float64))
    assert list(found) == [name for name, _ in model.tensors()]
    for slot in merged.slots():
        slot.write(found[slot.name])
    assert compare(model, merged, PROBES, 0).max_difference < 1e-12
    assert compare(model, base, PROBES, 0).max_difference > 0.01


def stacked_like_peft(folder: Path, experts: int = 3, **config: Any) -> Path:
    """What PEFT with transformers 5 writes for downs alone."""
    tensors = {}
    for layer in range(2):
        owner = f"base_model.model.model.layers.{layer}.mlp.experts"
        tensors[f"{owner}.lora_A.weight"] = torch.randn(2 * experts, 12)
        tensors[f"{owner}.lora_B.weight"] = torch.randn(16, 2 * experts)
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": []}
    (folder / "adapter_config.json").write_text(
        json.dumps(settings | {"target_parameters": ["experts.down_proj"]} | config)
    )
    return folder


def test_a_stacked_adapter_is_read(tmp_path: Path) -> None:
    adapter, tensors, _ = read_adapter(stacked_like_peft(tmp_path / "adapter"))
    model = network()
    adapter.attach(model, seed=0)
    fill(model, adapter, tensors, source="PEFT's")
    assert touched(model) == {f"{EXPERTS.format(layer)}.{e}.down_proj" for layer in (0, 1) for e in range(3)}
    a, b = tensors[f"{SAVED}.lora_A.weight"], tensors[f"{SAVED}.lora_B.weight"]
    for expert in range(3):
        linear = dict(model.linears())[f"{EXPERTS.format(0)}.{expert}.down_proj"]
        update = 2.0 * b.double()[:, expert::3] @ a.double()[2 * expert : 2 * expert + 2]  # experts innermost in B
        torch.testing.assert_close(adapter.merged(linear) - linear.dense(torch.float64), update)


def test_a_stacked_adapter_of_more_experts_does_not_fit(tmp_path: Path) -> None:
    adapter, tensors, _ = read_adapter(stacked_like_peft(tmp_path / "adapter", experts=4))
    model = network()
    adapter.attach(model, seed=0)
    with pytest.raises(CheckpointError, match="does not fit"):
        fill(model, adapter, tensors, source="PEFT's")


def test_an_adapter_with_experts_does_not_fit_a_dense_model(tmp_path: Path) -> None:
    adapter, _, _ = read_adapter(stacked_like_peft(tmp_path / "adapter"))
    with pytest.raises(RecipeError, match=r"no linear layer named 'experts\.down_proj'"):
        adapter.attach(tiny.decoder(), seed=0)


@pytest.mark.parametrize(
    "config",
    [
        {"rank_pattern": {"q_proj": 4}},
        {"alpha_pattern": {r".*\.gate_up_proj": 9}},
        {"rank_pattern": {r".*\.gate_up_proj": 4}, "alpha_pattern": {r".*\.gate_up_proj": 8}, "use_rslora": True},
        {"target_modules": ".*q_proj"},
    ],
)
def test_patterns_that_say_more_are_refused(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="ranks or factors that differ"):
        read_adapter(stacked_like_peft(tmp_path / "adapter", **config))
