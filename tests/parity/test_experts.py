"""Families with experts: random tiny models written by transformers, read by us, in float32: the same logits.

Also in cached decoding, from packed rows that share a prefix, from every layout experts are stored in, and with LoRA
on every expert, in PEFT's arithmetic and back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from lorikeet.models.experts import Mixture
from parity import test_families as families
from parity.test_transformers import TOLERANCE, difference, ours, permuted

transformers = pytest.importorskip("transformers")

EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 28, "norm_topk_prob": False}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "mixtral, three of six, a window": (
        "Mixtral", {"num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": 7, "head_dim": 12}
    ),
    "qwen3": ("Qwen3Moe", EXPERTS | {"head_dim": 20, "norm_topk_prob": True}),
    "qwen3, shares as they are, one expert": (
        "Qwen3Moe", EXPERTS | {"num_experts_per_tok": 1, "use_sliding_window": True, "sliding_window": 9}
    ),
    "qwen3, dense layers between": (
        "Qwen3Moe", EXPERTS | {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    ),
    "qwen2, a shared expert": ("Qwen2Moe", SHARED),
    "qwen2, windows, no biases": (
        "Qwen2Moe",
        SHARED | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2, "qkv_bias": False,
                  "norm_topk_prob": True},
    ),
}  # fmt: skip


def theirs(case: str, seed: int = 0, **options: Any) -> Any:
    name, settings = CASES[case]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**families.COMMON | settings | options)
    model = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.normal_(1 if "norm" in parameter_name else 0, 0.15)
    return model


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_equal_transformers(case: str, seed: int, tmp_path: Path) -> None:
    model = theirs(case, seed)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").read_text().count("experts.0.") >= 2  # a tensor per expert
    found = ours(tmp_path)
    assert difference(model, found, seed=seed, length=48) <= TOLERANCE
    assert any(isinstance(module, Mixture) for module in found.modules())


@pytest.mark.parametrize("case", CASES)
def test_stacked_experts_are_read_too(case: str, tmp_path: Path) -> None:
    """As transformers 5 keeps them in memory, and writes them on request."""
    model = theirs(case)
    model.save_pretrained(tmp_path, save_original_format=False)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert any(name.endswith("experts.gate_up_proj") for name in file.keys())  # noqa: SIM118
    assert difference(model, ours(tmp_path)) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_cached_decoding_and_shared_prefixes(case: str, tmp_path: Path) -> None:
    theirs(case).save_pretrained(tmp_path)
    model = ours(tmp_path)
    families.assert_cached_decoding_equals_reading_anew(model)
    families.assert_a_shared_prefix_equals_each_conversation_alone(model)


ARCHITECTURES = {"Mixtral": "llama", "Qwen3Moe": "qwen3moe", "Qwen2Moe": "qwen2moe"}


def write_gguf(path: Path, model: Any, *, one_by_one: bool = False) -> None:
    """By hand, as llama.cpp's convert_hf_to_gguf.py lays them out; `one_by_one` as early Mixtral files are."""
    config, name = model.config, type(model).__name__.removesuffix("ForCausalLM")
    writer = gguf.GGUFWriter(str(path), ARCHITECTURES[name])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if name != "Mixtral":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    for key, tensor in gguf_tensors(model, one_by_one):
        writer.add_tensor(key, np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(model: Any, one_by_one: bool) -> Any:
    config = model.config
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    inside = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate": "ffn_gate_inp",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
        "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
        "mlp.shared_expert.down_proj": "ffn_down_shexp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        if ".experts." in name:
            prefix = f"blk.{name.split('.')[2]}"
            stacks = {"ffn_down": tensor} if "down" in name else dict(zip(("ffn_gate", "ffn_up"), tensor.chunk(2, 1)))
            for kind, stack in stacks.items():
                if one_by_one:
                    yield from ((f"{prefix}.{kind}.{i}.weight", expert) for i, expert in enumerate(stack))
                else:
                    yield f"{prefix}.{kind}_exps.weight", stack
            continue
        stem, suffix = name.rsplit(".", 1)
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name and type(model).__name__.startswith("Mixtral"):
                tensor = permuted(tensor, heads)
        if stem in top:
            yield f"{top[stem]}.{suffix}", tensor
        else:
            _, _, index, rest = stem.split(".", 3)
            yield f"blk.{index}.{inside[rest]}.{suffix}", tensor.squeeze()


@pytest.mark.parametrize(
    ("case", "one_by_one"),
    [("mixtral", False), ("mixtral", True), ("qwen3", False), ("qwen2, a shared expert", False)],
)
def test_a_gguf_file_gives_the_same_logits(case: str, one_by_one: bool, tmp_path: Path) -> None:
    model = theirs(case)
    write_gguf(tmp_path / "tiny.gguf", model, one_by_one=one_by_one)
    assert difference(model, ours(tmp_path / "tiny.gguf")) <= TOLERANCE
