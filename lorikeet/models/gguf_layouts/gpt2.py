"""GPT-2 (Radford et al. 2019) in a GGUF file. Its checkpoints hold linears as [in, out]; the file has [out, in]."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from lorikeet.models.gguf_layouts._contract import GGUFLayout, check_activation, not_the_same, whole
from lorikeet.models.spec import Spec


class GPT2(GGUFLayout):
    """Learned positions, q, k and v in one linear."""

    model_type: ClassVar[str] = "gpt2"
    gguf_architecture: ClassVar[str | None] = "gpt2"
    gguf_inside: ClassVar[str] = "transformer."
    gguf_top: ClassVar[dict[str, str]] = {
        "wte": "token_embd",
        "wpe": "position_embd",
        "ln_f": "output_norm",
        "lm_head": "output",
    }
    gguf_layer: ClassVar[dict[str, str]] = {
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }

    def to_gguf(self, name: str, tensor: Tensor, spec: Spec) -> Tensor:
        return tensor.T if ".c_" in name and name.endswith(".weight") else tensor

    def lora_b_to_gguf(self, name: str, tensor: Tensor, spec: Spec) -> Tensor:
        return tensor

    def gguf_metadata(self, spec: Spec) -> dict[str, Any]:
        shape, config = spec.shape, spec.shape.config
        if config.get("scale_attn_by_inverse_layer_idx") or config.get("scale_attn_weights") is False:
            raise not_the_same("attention scores are scaled in another way", "scale_attn_by_inverse_layer_idx")
        check_activation(config.get("activation_function", "gelu_new"))
        return {
            "gpt2.context_length": whole(spec, "n_positions", 1024),
            "gpt2.embedding_length": shape.width,
            "gpt2.feed_forward_length": whole(spec, "n_inner", 4 * shape.width),
            "gpt2.block_count": shape.layers,
            "gpt2.attention.head_count": shape.heads,
            "gpt2.attention.layer_norm_epsilon": float(config.get("layer_norm_epsilon") or 1e-5),
            "gpt2.vocab_size": shape.vocab_size,
        }
