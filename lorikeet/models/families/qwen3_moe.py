"""Qwen 3 with experts (Yang et al. 2025), as in Qwen3-30B-A3B: Qwen 3's network, 128 narrow experts, 8 for a token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.experts import ExpertSizes
from lorikeet.models.families import _config
from lorikeet.models.families._contract import DecoderSpec
from lorikeet.models.families._experts import MixtureFamily, dense_layers, gguf_expert_width, gguf_experts
from lorikeet.models.families.qwen3 import Qwen3


class Qwen3Moe(MixtureFamily, Qwen3):
    """A window, where one is in use, is every layer's. transformers 5 writes num_experts as num_local_experts."""

    kind: ClassVar[str] = "qwen3_moe"
    model_type: ClassVar[str] = "qwen3_moe"
    architecture: ClassVar[str] = "Qwen3MoeForCausalLM"
    gguf_architecture: ClassVar[str | None] = "qwen3moe"
    gguf_layer: ClassVar[dict[str, str]] = {"mlp.gate": "ffn_gate_inp"}

    def spec(self, config: dict[str, Any]) -> DecoderSpec:
        spec = super().spec(config | {"head_dim": config.get("head_dim") or _head_dim(config)})
        layers, window = spec.shape.layers, {"sliding_window": 4096} | config
        sizes = ExpertSizes(
            count=_config.whole(config, "num_experts", config.get("num_local_experts") or 128),
            chosen=_config.whole(config, "num_experts_per_tok", 8),
            width=_config.whole(config, "moe_intermediate_size", 768),
            normalised=bool(config.get("norm_topk_prob", False)),
        )
        windows = _config.windows(window, layers) if config.get("use_sliding_window") else ()
        return self.with_experts(replace(spec, windows=windows), sizes, dense_layers(config, layers))

    def config_from_gguf(self, checkpoint: Checkpoint) -> dict[str, Any]:
        width = gguf_expert_width(checkpoint)
        config = super().config_from_gguf(checkpoint) | gguf_experts(checkpoint)
        return config | {
            "intermediate_size": config["intermediate_size"] or width,  # of dense layers, where there are any
            "moe_intermediate_size": width,
            "norm_topk_prob": True,  # the file does not say it; llama.cpp divides by the sum for this architecture
        }

    def gguf_metadata(self, spec: DecoderSpec) -> dict[str, Any]:
        return super().gguf_metadata(spec) | self.gguf_expert_settings(spec, normalised=True)


def _head_dim(config: dict[str, Any]) -> int:
    return _config.whole(config, "hidden_size") // _config.whole(config, "num_attention_heads")
