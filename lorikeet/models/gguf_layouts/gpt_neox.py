"""GPT-NeoX (Black et al. 2022), the network of Pythia, in a GGUF file."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from lorikeet.models.gguf_layouts._contract import GGUFLayout, not_the_same, whole
from lorikeet.models.gguf_layouts.bloom import heads_apart
from lorikeet.models.spec import Spec


class GPTNeoX(GGUFLayout):
    """A part of each head rotated, attention and feed-forward side by side."""

    model_type: ClassVar[str] = "gpt_neox"
    gguf_architecture: ClassVar[str | None] = "gptneox"
    gguf_inside: ClassVar[str] = "gpt_neox."
    gguf_top: ClassVar[dict[str, str]] = {
        "embed_in": "token_embd",
        "final_layer_norm": "output_norm",
        "embed_out": "output",
    }
    gguf_layer: ClassVar[dict[str, str]] = {
        "input_layernorm": "attn_norm",
        "attention.query_key_value": "attn_qkv",
        "attention.dense": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    }

    def to_gguf(self, name: str, tensor: Tensor, spec: Spec) -> Tensor:
        return heads_apart(tensor, spec.shape.heads) if ".query_key_value." in name else tensor

    def gguf_metadata(self, spec: Spec) -> dict[str, Any]:
        shape, config = spec.shape, spec.shape.config
        if config.get("hidden_act", "gelu") != "gelu" or config.get("attention_bias") is False:
            raise not_the_same("another activation, or no biases", config.get("hidden_act"), "gelu, with biases")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind != "default":
            raise not_the_same("rope scaling", rope, "none")
        part = rope.get("partial_rotary_factor") or config.get("rotary_pct") or 0.25
        theta = rope.get("rope_theta") or config.get("rotary_emb_base") or 10000
        return {
            "gptneox.context_length": whole(spec, "max_position_embeddings", 2048),
            "gptneox.embedding_length": shape.width,
            "gptneox.block_count": shape.layers,
            "gptneox.feed_forward_length": whole(spec, "intermediate_size", 24576),
            "gptneox.rope.dimension_count": int(part * (shape.width // shape.heads)),
            "gptneox.rope.freq_base": float(theta),
            "gptneox.attention.head_count": shape.heads,
            "gptneox.use_parallel_residual": bool(config.get("use_parallel_residual", True)),
            "gptneox.attention.layer_norm_epsilon": float(config.get("layer_norm_eps") or 1e-5),
            "gptneox.vocab_size": shape.vocab_size,
        }
