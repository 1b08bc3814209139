"""modules_to_save crosses over: ours load in PEFT, PEFT's load here, equal logits and gradients in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._merge import merged_tensors
from lorikeet.adapters._storage import save_adapter
from lorikeet.adapters.dora import Dora
from lorikeet.adapters.ia3 import Ia3
from lorikeet.adapters.lora import Lora
from lorikeet.checkpoints import hf
from parity import tiny
from parity.test_peft import BIASED, TOKENS, their_logits
from parity.test_peft_kinds import check_gradients, moved
from parity.test_transformers import TOLERANCE, llama, logits, ours

peft = pytest.importorskip("peft")

TIED = {"tie_word_embeddings": True}
Case = tuple[type[Adapter], dict[str, Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "both tables": (Lora, {"modules_to_save": ["embed_tokens", "lm_head"]}, {}),
    "both tables of a tied model": (Lora, {"modules_to_save": ["embed_tokens", "lm_head"]}, TIED),
    "the head of a tied model": (Lora, {"modules_to_save": ["lm_head"]}, TIED),
    "the embedding of a tied model": (Lora, {"modules_to_save": ["embed_tokens"]}, TIED),
    "norms": (Lora, {"modules_to_save": ["norm"]}, {}),
    "a linear among others of its group": (
        Lora, {"modules_to_save": ["k_proj", "layers.1.mlp.up_proj"], "bias": "lora_only"}, BIASED,
    ),
    "a whole part": (Lora, {"modules_to_save": ["layers.0.mlp", "norm"], "target_modules": ["q_proj"]}, {}),
    "dora": (Dora, {"modules_to_save": ["v_proj", "lm_head"]}, {}),
    "ia3": (
        Ia3, {"modules_to_save": ["q_proj", "embed_tokens"], "target_modules": ["k_proj", "down_proj"],
              "feedforward_modules": ["down_proj"]}, {},
    ),
}  # fmt: skip
EACH = pytest.mark.parametrize(("kind", "options", "network"), CASES.values(), ids=CASES.keys())


def peft_config(kind: type[Adapter], options: dict[str, Any]) -> Any:
    settings = {"target_modules": "all-linear"} | options
    if kind is Ia3:
        return peft.IA3Config(task_type="CAUSAL_LM", **settings)
    return peft.LoraConfig(task_type="CAUSAL_LM", use_dora=kind is Dora, r=8, lora_alpha=16, **settings)


@EACH
def test_our_adapter_loads_in_peft_and_merges(
    kind: type[Adapter], options: dict[str, Any], network: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    llama(0, **network).save_pretrained(tmp_path / "base")
    model, adapter = ours(tmp_path / "base"), kind(**options)
    untouched = logits(model, TOKENS)
    adapter.attach(model, seed=0)
    torch.testing.assert_close(logits(model, TOKENS), untouched, atol=1e-5, rtol=1e-5)
    moved(adapter.parameters(model))
    expected = logits(model, TOKENS)
    assert (expected - untouched).abs().max() > 0.05
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", adapter, model, {"base": "tiny"})
    loaded = peft.PeftModel.from_pretrained(llama(0, **network), tmp_path / "adapter").eval()
    assert (their_logits(loaded) - expected).abs().max() <= TOLERANCE
    (tmp_path / "merged").mkdir()
    settings = model.shape.config | adapter.merged_settings(model, model.shape.config)
    hf.save(tmp_path / "merged", settings, merged_tensors(model, adapter, torch.float32), max_shard_bytes=50_000)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert (their_logits(merged) - expected).abs().max() <= TOLERANCE
    assert (logits(ours(tmp_path / "merged"), TOKENS) - expected).abs().max() <= TOLERANCE


@EACH
def test_an_adapter_saved_by_peft_loads_here_with_its_gradients(
    kind: type[Adapter], options: dict[str, Any], network: dict[str, Any], tmp_path: Path
) -> None:
    base = llama(0, **network)
    base.save_pretrained(tmp_path / "base")
    theirs = peft.get_peft_model(base, peft_config(kind, options)).train()
    moved({name: parameter for name, parameter in theirs.named_parameters() if parameter.requires_grad})
    expected = their_logits(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    model = ours(tmp_path / "base")
    adapter, _ = tiny.with_saved(model, tmp_path / "adapter")
    assert type(adapter) is kind
    assert (logits(model, TOKENS) - expected).abs().max() <= TOLERANCE
    check_gradients(theirs, model, adapter)


def test_only_what_is_named_is_saved(tmp_path: Path) -> None:
    llama(0).save_pretrained(tmp_path / "base")
    model, adapter = ours(tmp_path / "base"), Lora(modules_to_save=["lm_head"], target_modules=["q_proj"])
    adapter.attach(model, seed=0)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", adapter, model, {})
    names = {name.rsplit(".", 2)[-2] for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors")}
    assert names == {"lora_A", "lora_B", "lm_head"}
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["modules_to_save"] == ["lm_head"]
