"""Mixtral (Jiang et al. 2024): Mistral's network with eight experts in each layer, two of them for each token."""

from __future__ import annotations

from typing import Any, ClassVar

from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.experts import ExpertNames, ExpertSizes
from lorikeet.models.families import _config
from lorikeet.models.families._contract import DecoderSpec
from lorikeet.models.families._experts import MixtureFamily, gguf_experts
from lorikeet.models.families.mistral import Mistral


class Mixtral(MixtureFamily, Mistral):
    """The softmax over the k chosen logits is the softmax over all, divided by the sum of the chosen."""

    kind: ClassVar[str] = "mixtral"
    model_type: ClassVar[str] = "mixtral"
    architecture: ClassVar[str] = "MixtralForCausalLM"
    gguf_architecture: ClassVar[str | None] = "llama"
    gguf_layer: ClassVar[dict[str, str]] = {"block_sparse_moe.gate": "ffn_gate_inp"}
    expert_names: ClassVar[ExpertNames] = ExpertNames("block_sparse_moe", "gate", "w1", "w3", "w2")

    def matches(self, checkpoint: Checkpoint) -> bool:
        config = checkpoint.config
        if checkpoint.layout == "gguf":
            return config.get("general.architecture") == "llama" and bool(config.get("llama.expert_count"))
        return config.get("model_type") == self.model_type

    def spec(self, config: dict[str, Any]) -> DecoderSpec:
        config = {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "num_key_value_heads": 8} | config
        spec = super().spec(config)
        sizes = ExpertSizes(
            count=_config.whole(config, "num_local_experts", config.get("num_experts") or 8),
            chosen=_config.whole(config, "num_experts_per_tok", 2),
            width=spec.shape.ffn_width,
            normalised=True,
        )
        return self.with_experts(spec, sizes)

    def config_from_gguf(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config_from_gguf(checkpoint) | gguf_experts(checkpoint)
        return {**config, "num_local_experts": config.pop("num_experts")}

    def gguf_metadata(self, spec: DecoderSpec) -> dict[str, Any]:
        return super().gguf_metadata(spec) | self.gguf_expert_settings(spec)
