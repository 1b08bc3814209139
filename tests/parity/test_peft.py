"""Adapters cross over: ours load in PEFT, PEFT's load here, and both give the same logits in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet.adapters._merge import merged_tensors
from lorikeet.adapters._storage import save_adapter
from lorikeet.adapters.lora import Lora
from lorikeet.checkpoints import hf
from parity import tiny
from parity.test_transformers import TOLERANCE, llama, logits, ours

peft = pytest.importorskip("peft")

BIASED = {"attention_bias": True, "mlp_bias": True}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"r": 4, "lora_alpha": 8.0}, {}),
    "rslora": ({"r": 4, "lora_alpha": 6.0, "use_rslora": True}, {}),
    "scaling given directly": ({"r": 3, "scaling": 0.7}, {}),
    "some targets": ({"r": 2, "target_modules": ["q_proj", "v_proj", "down_proj"]}, {}),
    "some layers": ({"r": 2, "target_modules": r".*layers\.1\.(self_attn\.[kv]_proj|mlp\.up_proj)"}, {}),
    "layers by number": ({"r": 2, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]}, {}),
    "all but some": ({"r": 2, "exclude_modules": ["k_proj", "layers.0.mlp.down_proj"]}, {}),
    "ranks and alphas by name": (
        {
            "r": 3, "lora_alpha": 5.0, "rank_pattern": {"q_proj": 1, r"layers\.1\.mlp\..*": 4},
            "alpha_pattern": {"v_proj": 9.0, "layers.0.mlp.up_proj": 2.0},
        },
        {},
    ),
    "ranks by name, rslora": ({"r": 3, "lora_alpha": 5.0, "use_rslora": True, "rank_pattern": {"k_proj": 6}}, {}),
    "ranks by name, scaling given directly": ({"r": 3, "scaling": 0.7, "rank_pattern": {"k_proj": 6}}, {}),
    "biases of targets": ({"r": 2, "bias": "lora_only", "target_modules": ["k_proj", "gate_proj"]}, BIASED),
    "all biases": ({"r": 2, "bias": "all", "target_modules": ["q_proj", "down_proj"]}, BIASED),
}  # fmt: skip
TOKENS = torch.randint(97, (30,), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def their_logits(model: Any) -> torch.Tensor:
    return model(TOKENS[None]).logits[0]


@pytest.mark.parametrize(("options", "network"), OPTIONS.values(), ids=OPTIONS.keys())
def test_our_adapter_loads_in_peft_with_equal_logits(
    options: dict[str, Any], network: dict[str, Any], tmp_path: Path
) -> None:
    llama(0, **network).save_pretrained(tmp_path / "base")
    model = ours(tmp_path / "base")
    untouched = logits(model, TOKENS)
    parameters = tiny.with_lora(model, **options)
    expected = logits(model, TOKENS)
    assert (expected - untouched).abs().max() > 0.1
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", Lora(**options), model, {"base": "tiny"})
    loaded = peft.PeftModel.from_pretrained(llama(0, **network), tmp_path / "adapter").eval()
    names = {name.replace(".default", "") for name, _ in loaded.named_parameters() if "lora_" in name}
    assert names == {name for name in parameters if "lora_" in name}
    assert (their_logits(loaded) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize(("options", "network"), OPTIONS.values(), ids=OPTIONS.keys())
def test_an_adapter_saved_by_peft_loads_here_with_equal_logits(
    options: dict[str, Any], network: dict[str, Any], tmp_path: Path
) -> None:
    base = llama(0, **network)
    base.save_pretrained(tmp_path / "base")
    settings = {name: value for name, value in options.items() if name != "scaling"}
    settings |= {"target_modules": options.get("target_modules", "all-linear")}
    if "scaling" in options:
        settings["lora_alpha"] = options["scaling"] * options["r"]
    theirs = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    expected = their_logits(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    model = ours(tmp_path / "base")
    adapter, identity = tiny.with_saved(model, tmp_path / "adapter")
    assert identity == {} and isinstance(adapter, Lora)
    assert (logits(model, TOKENS) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize(("options", "network"), OPTIONS.values(), ids=OPTIONS.keys())
def test_the_merged_model_is_base_and_adapter_in_transformers(
    options: dict[str, Any], network: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    theirs = llama(0, **network)
    theirs.save_pretrained(tmp_path / "base")
    model = ours(tmp_path / "base")
    tiny.with_lora(model, **options)
    (tmp_path / "merged").mkdir()
    tensors = merged_tensors(model, Lora(**options), torch.float32)
    hf.save(tmp_path / "merged", model.shape.config, tensors, max_shard_bytes=50_000)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert (their_logits(merged) - logits(model, TOKENS)).abs().max() <= TOLERANCE
