"""Bloom (BigScience 2022) in a GGUF file."""

from __future__ import annotations

from typing import Any, ClassVar

from lorikeet.models.gguf_layouts._contract import not_the_same, whole
from lorikeet.models.gguf_layouts._fused_heads import FusedHeads
from lorikeet.models.spec import Spec


class Bloom(FusedHeads):
    """Positions by ALiBi, a norm behind the embedding."""

    model_type: ClassVar[str] = "bloom"
    gguf_architecture: ClassVar[str | None] = "bloom"
    gguf_inside: ClassVar[str] = "transformer."
    gguf_top: ClassVar[dict[str, str]] = {
        "word_embeddings": "token_embd",
        "word_embeddings_layernorm": "token_embd_norm",
        "ln_f": "output_norm",
        "lm_head": "output",
    }
    gguf_attention: ClassVar[str] = "self_attention"

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
