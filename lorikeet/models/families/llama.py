"""Llama (Touvron et al. 2023) and its relatives with the same config: SmolLM, TinyLlama, Vicuna."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from lorikeet.base.errors import ModelError
from lorikeet.models.causal_lm import Shape
from lorikeet.models.families._contract import DecoderSpec, Family, whole
from lorikeet.ops.rope import Rope


class Llama(Family):
    """Grouped-query attention, rotary halves, SwiGLU, RMSNorm, tied or untied head."""

    kind: ClassVar[str] = "llama"
    model_type: ClassVar[str] = "llama"
    architecture: ClassVar[str] = "LlamaForCausalLM"
    gguf_architecture: ClassVar[str | None] = "llama"

    def spec(self, config: dict[str, Any]) -> DecoderSpec:
        heads, width = whole(config, "num_attention_heads"), whole(config, "hidden_size")
        layers, ffn = whole(config, "num_hidden_layers"), whole(config, "intermediate_size")
        vocabulary = whole(config, "vocab_size")
        activation = config.get("hidden_act", "silu")
        if activation != "silu":
            raise ModelError("a Llama model with another activation", given=activation, allowed="silu")
        head_dim = whole(config, "head_dim", width // heads)
        # transformers 5 writes rope_parameters; before, rope_theta and rope_scaling stood apart
        rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        theta = float(rope.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
        max_position = whole(config, "max_position_embeddings", 2048)
        shape = Shape(
            vocab_size=vocabulary,
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=whole(config, "num_key_value_heads", heads),
            head_dim=head_dim,
            ffn_width=ffn,
            max_position=max_position,
            config=config,
        )
        bias = bool(config.get("attention_bias", False))
        return DecoderSpec(
            shape=shape,
            rope=Rope(head_dim, theta, max_position, rope),
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            tied=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bias,
            output_bias=bias,
            mlp_bias=bool(config.get("mlp_bias", False)),
        )

    def config_from_gguf(self, metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        def get(key: str, default: Any = None) -> Any:
            return metadata.get(f"llama.{key}", default)

        heads, width = get("attention.head_count"), get("embedding_length")
        config = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": shapes["token_embd.weight"][0],
            "hidden_size": width,
            "num_hidden_layers": get("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": get("attention.head_count_kv", heads),
            "head_dim": get("attention.key_length", width // heads),
            "intermediate_size": get("feed_forward_length"),
            "max_position_embeddings": get("context_length"),
            "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
            "rope_theta": get("rope.freq_base", 10000.0),
            "hidden_act": "silu",
            "attention_bias": "blk.0.attn_q.bias" in shapes,
            "mlp_bias": "blk.0.ffn_gate.bias" in shapes,
            "tie_word_embeddings": "output.weight" not in shapes,
            "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        }
        if "rope_freqs.weight" in shapes:
            raise ModelError(
                "this GGUF file carries Llama 3's rope factors, which are not read yet",
                given=metadata.get("general.name"),
                try_="the same model as a Hugging Face folder",
            )
        scaling = get("rope.scaling.type")
        if scaling in ("linear", "yarn"):
            original = get("rope.scaling.original_context_length")
            config["rope_scaling"] = {
                "rope_type": scaling,
                "factor": get("rope.scaling.factor"),
                **({"original_max_position_embeddings": original} if original else {}),
            }
        return config

    def from_gguf(self, name: str, tensor: Tensor, spec: DecoderSpec) -> Tensor:
        """GGUF interleaves the two halves of each q and k head; put them back side by side."""
        for projection, heads in (("q_proj", spec.shape.heads), ("k_proj", spec.shape.kv_heads)):
            if f".{projection}." in name:
                rest = tensor.shape[1:]
                return tensor.view(heads, -1, 2, *rest).transpose(1, 2).reshape(tensor.shape)
        return tensor
