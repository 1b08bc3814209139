"""GPT-NeoX (Black et al. 2022), the network of Pythia, in a GGUF file."""

from __future__ import annotations

from typing import Any, ClassVar

from lorikeet.models.gguf_layouts._contract import check_activation, not_the_same, whole
from lorikeet.models.gguf_layouts._fused_heads import FusedHeads
from lorikeet.models.spec import Spec


class GPTNeoX(FusedHeads):
    """A part of each head rotated, attention and feed-forward side by side."""

    model_type: ClassVar[str] = "gpt_neox"
    gguf_architecture: ClassVar[str | None] = "gptneox"
    gguf_inside: ClassVar[str] = "gpt_neox."
    gguf_top: ClassVar[dict[str, str]] = {
        "embed_in": "token_embd",
        "final_layer_norm": "output_norm",
        "embed_out": "output",
    }
    gguf_attention: ClassVar[str] = "attention"

    def gguf_metadata(self, spec: Spec) -> dict[str, Any]:
        shape, config = spec.shape, spec.shape.config
        check_activation(config.get("hidden_act", "gelu"))
        if config.get("attention_bias") is False or config.get("tie_word_embeddings"):
            given = "attention_bias false" if config.get("attention_bias") is False else "tie_word_embeddings true"
            raise not_the_same("its linears have biases, and the head is a tensor of its own", given)
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
