"""Tiny GGUF files as llama.cpp's convert_hf_to_gguf.py writes them, for each family: metadata, names and layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen": gguf.MODEL_ARCH.QWEN,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
}


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """What the conversion does to Llama's q and k: the two halves of each head interleaved."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write(path: Path, model: Any, extra: dict[str, Tensor] | None = None, *, one_by_one: bool = False) -> None:
    """`model` is a transformers model; `extra` are tensors the conversion adds. Experts lie stacked, or `one_by_one`
    as in early files of Mixtral."""
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[architecture])
    _metadata(writer, config)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if ".experts." in name:
            for key, stack in _experts(name, tensor, one_by_one).items():
                writer.add_tensor(key, stack.contiguous().numpy())
            continue
        stem, suffix = name.rsplit(".", 1)
        tensor = _converted(name, tensor, config)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", tensor.contiguous().float().numpy())
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _experts(name: str, tensor: Tensor, one_by_one: bool) -> dict[str, Tensor]:
    """`gate_up_proj` [E, 2F, D] or `down_proj` [E, D, F]."""
    layer, stacks = name.split(".")[2], {"ffn_down": tensor}
    if name.endswith("gate_up_proj"):
        stacks = dict(zip(("ffn_gate", "ffn_up"), tensor.chunk(2, 1)))
    if one_by_one:
        return {f"blk.{layer}.{kind}.{i}.weight": one for kind, stack in stacks.items() for i, one in enumerate(stack)}
    return {f"blk.{layer}.{kind}_exps.weight": stack for kind, stack in stacks.items()}


def _converted(name: str, tensor: Tensor, config: Any) -> Tensor:
    if config.model_type in ("llama", "mistral", "mixtral"):
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                return interleaved(tensor, heads)
    if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
        return tensor + 1
    return tensor.squeeze()  # of the gate of a shared expert, which is one row


def _metadata(writer: Any, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if config.model_type in ("mixtral", "qwen2_moe", "qwen3_moe"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if config.model_type in ("qwen2_moe", "qwen3_moe"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if config.model_type in ("gemma2", "gemma3_text", "phi3") and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type == "phi3":
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
        if rope["rope_type"] == "longrope":
            original = rope["original_max_position_embeddings"]
            grown = config.max_position_embeddings / original
            writer.add_rope_scaling_orig_ctx_len(original)
            writer.add_rope_scaling_attn_factors(
                float((1 + torch.tensor(grown).log() / torch.tensor(float(original)).log()) ** 0.5)
            )
            writer.add_tensor("rope_factors_long.weight", torch.tensor(rope["long_factor"]).numpy())
            writer.add_tensor("rope_factors_short.weight", torch.tensor(rope["short_factor"]).numpy())
