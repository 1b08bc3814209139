"""Bloom (BigScience 2022) in a GGUF file: q, k and v of all heads one after the other, positions by ALiBi."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from lorikeet.models.gguf_layouts._contract import GGUFLayout, not_the_same, whole
from lorikeet.models.spec import Spec


class Bloom(GGUFLayout):
    """Checkpoints have q, k and v of one head together, then those of the next."""

    model_type: ClassVar[str] = "bloom"
    gguf_architecture: ClassVar[str | None] = "bloom"
    gguf_inside: ClassVar[str] = "transformer."
    gguf_top: ClassVar[dict[str, str]] = {
        "word_embeddings": "token_embd",
        "word_embeddings_layernorm": "token_embd_norm",
        "ln_f": "output_norm",
        "lm_head": "output",
    }
    gguf_layer: ClassVar[dict[str, str]] = {
        "input_layernorm": "attn_norm",
        "self_attention.query_key_value": "attn_qkv",
        "self_attention.dense": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    }

    def to_gguf(self, name: str, tensor: Tensor, spec: Spec) -> Tensor:
        return heads_apart(tensor, spec.shape.heads) if ".query_key_value." in name else tensor

    def gguf_metadata(self, spec: Spec) -> dict[str, Any]:
        shape, config = spec.shape, spec.shape.config
        if config.get("apply_residual_connection_post_layernorm"):
            raise not_the_same("residuals behind the norm", "apply_residual_connection_post_layernorm true", "false")
        return {
            "bloom.context_length": whole(spec, "seq_length", 2048),
            "bloom.embedding_length": shape.width,
            "bloom.feed_forward_length": 4 * shape.width,
            "bloom.block_count": shape.layers,
            "bloom.attention.head_count": shape.heads,
            "bloom.attention.head_count_kv": shape.heads,
            "bloom.attention.layer_norm_epsilon": float(config.get("layer_norm_epsilon") or 1e-5),
            "bloom.vocab_size": shape.vocab_size,
        }


def heads_apart(tensor: Tensor, heads: int) -> Tensor:
    """Rows as (head, one of q, k, v) to rows as (one of q, k, v, head)."""
    return tensor.reshape(heads, 3, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)
