"""Qwen 2 with experts (Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B): narrow experts, and a gated one that all tokens share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.experts import ExpertNames, ExpertSizes
from lorikeet.models.families import _config
from lorikeet.models.families._contract import DecoderSpec
from lorikeet.models.families._experts import MixtureFamily, dense_layers, gguf_expert_width, gguf_experts
from lorikeet.models.families.qwen2 import Qwen2
from lorikeet.models.gguf_layouts._contract import not_the_same


class Qwen2Moe(MixtureFamily, Qwen2):
    """Of the layers below `max_window_layers`, every other has the window, where it is in use."""

    kind: ClassVar[str] = "qwen2_moe"
    model_type: ClassVar[str] = "qwen2_moe"
    architecture: ClassVar[str] = "Qwen2MoeForCausalLM"
    gguf_architecture: ClassVar[str | None] = "qwen2moe"
    gguf_layer: ClassVar[dict[str, str]] = {
        "mlp.gate": "ffn_gate_inp",
        "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
        "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
        "mlp.shared_expert.up_proj": "ffn_up_shexp",
        "mlp.shared_expert.down_proj": "ffn_down_shexp",
    }
    expert_names: ClassVar[ExpertNames] = ExpertNames(shared="shared_expert", shared_gate="shared_expert_gate")

    def spec(self, config: dict[str, Any]) -> DecoderSpec:
        spec = super().spec(config)
        layers, below = spec.shape.layers, config.get("max_window_layers", 28)
        pattern = ["full_attention" if i % 2 or i >= below else "sliding_attention" for i in range(layers)]
        sizes = ExpertSizes(
            count=_config.whole(config, "num_experts", config.get("num_local_experts") or 60),
            chosen=_config.whole(config, "num_experts_per_tok", 4),
            width=_config.whole(config, "moe_intermediate_size", 1408),
            normalised=bool(config.get("norm_topk_prob", False)),
            shared_width=_config.whole(config, "shared_expert_intermediate_size", 5632),
        )
        window = {"sliding_window": 4096} | config
        spec = replace(
            spec,
            attention_bias=bool(config.get("qkv_bias", True)),
            windows=_config.windows(window, layers, pattern=pattern) if config.get("use_sliding_window") else (),
        )
        return self.with_experts(spec, sizes, dense_layers(config, layers))

    def config_from_gguf(self, checkpoint: Checkpoint) -> dict[str, Any]:
        width, shared = gguf_expert_width(checkpoint), checkpoint.shape("blk.0.ffn_gate_shexp.weight")[0]
        config = super().config_from_gguf(checkpoint) | gguf_experts(checkpoint)
        return config | {
            "intermediate_size": config["intermediate_size"] or width,  # of dense layers, where there are any
            "moe_intermediate_size": width,
            "shared_expert_intermediate_size": shared,
            "norm_topk_prob": False,  # the file does not say it; llama.cpp does not divide for this architecture
        }

    def from_gguf(self, name: str, tensor: Tensor, spec: DecoderSpec) -> Tensor:
        """The shared expert's gate is a vector there."""
        return tensor.view(1, -1) if name.endswith("shared_expert_gate.weight") else tensor

    def to_gguf(self, name: str, tensor: Tensor, spec: DecoderSpec) -> Tensor:
        return tensor.reshape(-1) if name.endswith("shared_expert_gate.weight") else tensor

    def gguf_metadata(self, spec: DecoderSpec) -> dict[str, Any]:
        if spec.tied:
            raise not_the_same("the head is a tensor of its own", "tie_word_embeddings true", "false")
        return super().gguf_metadata(spec) | self.gguf_expert_settings(spec, normalised=False)
