"""Random tiny networks of architectures that differ in mechanism, as transformers makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.models._hf_model import TransformersModel
from lorikeet.models.load import Choice, load
from lorikeet.quant._contract import Quant
from lorikeet.quant.none import NoQuant
from parity import tiny

VOCAB = 97
IDS: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = IDS | {
    "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
OLD = IDS | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
# name: what transformers calls it, its settings
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", IDS | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gpt_neox": ("GPTNeoX", OLD | {"intermediate_size": 48, "max_position_embeddings": 128, "rotary_pct": 0.5}),
    "bloom": ("Bloom", OLD),
    "falcon": ("Falcon", OLD | {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, alibi": ("Falcon", OLD | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "opt": (
        "OPT", OLD | {"ffn_dim": 48, "word_embed_proj_dim": 48, "max_position_embeddings": 128}
    ),
    "gemma2": ("Gemma2", LLAMA | {"head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 8}),
    "phi3": ("Phi3", LLAMA | {"sliding_window": 9}),
    "mixtral": ("Mixtral", LLAMA | {"num_local_experts": 4}),
    "glm4": ("Glm4", LLAMA | {"head_dim": 16, "attention_bias": True}),
    "cohere": ("Cohere", LLAMA | {"use_qk_norm": True, "logit_scale": 0.25}),
    "deepseek_v3": (
        "DeepseekV3",
        LLAMA | {"num_key_value_heads": 4, "moe_intermediate_size": 20, "n_routed_experts": 8, "num_experts_per_tok": 3,
                 "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": 24,
                 "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10},
    ),
    "qwen3_moe": ("Qwen3Moe", LLAMA | EXPERTS | {"head_dim": 20, "norm_topk_prob": True}),
}  # fmt: skip
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 8, "mamba_expand": 2}
LINEAR = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "head_dim": 16}
# those whose layers, all or some, carry a state along the text, which no view can share between texts
RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba2": (
        "Mamba2", IDS | {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 16, "num_heads": 8, "head_dim": 16,
                         "n_groups": 2, "chunk_size": 8, "expand": 2},
    ),
    "jamba": (
        "Jamba", LLAMA | {"num_hidden_layers": 3, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8,
                          "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 4, "mamba_dt_rank": 4,
                          "use_mamba_kernels": False},
    ),
    "mamba": ("Mamba", IDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4}),
    "bamba": ("Bamba", LLAMA | MAMBA2 | {"attn_layer_indices": [1], "mamba_n_groups": 2}),
    "zamba2": (
        "Zamba2", LLAMA | {"num_hidden_layers": 3, "num_key_value_heads": 4, "mamba_d_state": 16, "mamba_ngroups": 2,
                           "n_mamba_heads": 8, "mamba_headdim": 16, "chunk_size": 8, "hybrid_layer_ids": [1],
                           "num_mem_blocks": 1, "layers_block_type": ["mamba", "hybrid", "mamba"], "adapter_rank": 4},
    ),
    "granite, hybrid": (
        "GraniteMoeHybrid", LLAMA | MAMBA2 | {"layer_types": ["mamba", "attention"], "num_local_experts": 4,
                                              "mamba_n_groups": 1, "shared_intermediate_size": 32},
    ),
    "falcon_h1": ("FalconH1", LLAMA | MAMBA2 | {"mamba_n_groups": 1, "mamba_d_ssm": 128}),
    "recurrent_gemma": (
        "RecurrentGemma", LLAMA | {"num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 16},
    ),
    "rwkv": (
        "Rwkv", IDS | {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 128, "intermediate_size": 48},
    ),
    "lfm2": ("Lfm2", LLAMA | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "qwen3_next": (
        "Qwen3Next", LLAMA | LINEAR | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_experts": 4,
                                       "linear_key_head_dim": 16, "linear_value_head_dim": 16,
                                       "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                                       "shared_expert_intermediate_size": 16},
    ),
    "minimax": ("MiniMax", LLAMA | LINEAR | {"num_local_experts": 4, "block_size": 16}),
    "olmo_hybrid": ("OlmoHybrid", LLAMA | {"layer_types": ["linear_attention", "full_attention"]}),
}  # fmt: skip


def theirs(case: str, seed: int = 0) -> Any:
    """The network with weights, norms and biases far from their initial values."""
    import transformers

    name, settings = (CASES | RECURRENT)[case]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**settings)
    config.attention_dropout = config.hidden_dropout = config.dropout = 0.0
    suffix = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    model = getattr(transformers, f"{name}{suffix}")(config).float().eval()
    offset = 0 if name.startswith("Gemma") else 1
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            norm = any(word in key for word in ("norm", "ln_")) and key.endswith("weight")
            tensor.normal_(offset if norm else 0, 0.15)
        for key, tensor in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                tensor.normal_(0, 0.1)
    model.tie_weights()
    return model


def ours(path: Path, quant: Quant | None = None, dtype: torch.dtype = torch.float32) -> TransformersModel:
    """The folder's network, from transformers whatever its family."""
    choice = Choice(source="transformers")
    model = load(open_checkpoint(path), quant or NoQuant(), dtype=dtype, device=tiny.CPU, family=choice)
    assert isinstance(model, TransformersModel)
    return model
