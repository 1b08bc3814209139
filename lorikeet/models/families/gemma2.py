"""Gemma 2 (Gemma Team 2024): every other layer has a window; attention scores and logits are capped."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.families import _config, _gguf
from lorikeet.models.families._contract import DecoderSpec, Names
from lorikeet.models.families.gemma import Gemma
from lorikeet.models.gguf_layouts._contract import not_the_same

NAMES = Names(
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)


class Gemma2(Gemma):
    """Norms before and behind attention and feed-forward; their weights are kept as Gemma 1's are."""

    kind: ClassVar[str] = "gemma2"
    model_type: ClassVar[str] = "gemma2"
    architecture: ClassVar[str] = "Gemma2ForCausalLM"
    gguf_architecture: ClassVar[str | None] = "gemma2"
    gguf_layer: ClassVar[dict[str, str]] = {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }

    def spec(self, config: dict[str, Any]) -> DecoderSpec:
        shape = _config.sizes(config, max_position=8192, head_dim=256)
        pattern = ["full_attention" if i % 2 else "sliding_attention" for i in range(shape.layers)]
        bias = bool(config.get("attention_bias", False))
        return DecoderSpec(
            shape=shape,
            rope=_config.rope(config, shape),
            norm_eps=_config.number(config, "rms_norm_eps") or 1e-6,
            norm_offset=1.0,
            tied=_config.tied(config, True),
            attention_bias=bias,
            output_bias=bias,
            names=NAMES,
            activation=_config.activation(config, "gelu_pytorch_tanh", key="hidden_activation"),
            windows=_config.windows({"sliding_window": 4096} | config, shape.layers, pattern=pattern),
            scale=(_config.number(config, "query_pre_attn_scalar") or 256.0) ** -0.5,
            softcap=_config.number({"attn_logit_softcapping": 50.0} | config, "attn_logit_softcapping"),
            final_softcap=_config.number({"final_logit_softcapping": 30.0} | config, "final_logit_softcapping"),
            embedding_scale=math.sqrt(shape.width),
        )

    def config_from_gguf(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config, metadata = _gguf.read_settings(checkpoint, self.architecture, self.model_type), checkpoint.config
        del config["hidden_act"]
        big = config["num_hidden_layers"] == 46  # the 27B model divides scores by sqrt(D / H), the others by sqrt(E)
        return config | {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"]
            if big
            else config["head_dim"],
            "sliding_window": metadata.get("gemma2.attention.sliding_window", 4096),
            "attn_logit_softcapping": metadata.get("gemma2.attn_logit_softcapping", 50.0),
            "final_logit_softcapping": metadata.get("gemma2.final_logit_softcapping", 30.0),
        }

    def gguf_metadata(self, spec: DecoderSpec) -> dict[str, Any]:
        check_scale(spec, big=46)
        if spec.softcap is None or spec.final_softcap is None:
            raise not_the_same("it always caps scores and logits", "a cap of none", "a number")
        window = next((width for width in spec.windows if width is not None), None)
        if window is None or spec.windows != tuple(None if i % 2 else window for i in range(spec.shape.layers)):
            raise not_the_same("every other layer has the window, the first one too", spec.windows)
        return super().gguf_metadata(spec) | {
            "gemma2.attention.sliding_window": window,
            "gemma2.attn_logit_softcapping": spec.softcap,
            "gemma2.final_logit_softcapping": spec.final_softcap,
        }

    def gguf_notes(self, spec: DecoderSpec) -> list[str]:
        return []  # its windows are known


def check_scale(spec: DecoderSpec, *, big: int) -> None:
    """Raise ModelError unless scores are divided by sqrt(E), or in the model of `big` layers by sqrt(D / H)."""
    shape = spec.shape
    divisor = shape.width // shape.heads if shape.layers == big else shape.head_dim
    if spec.scale is None or not math.isclose(spec.scale, divisor**-0.5):
        raise not_the_same("attention scores are scaled in another way", f"scale {spec.scale}", f"{divisor} ** -0.5")
