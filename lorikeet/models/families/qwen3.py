"""Qwen 3 (Yang et al. 2025): Qwen 2's network without biases, with an RMSNorm on each head of q and k."""

from __future__ import annotations

from typing import Any, ClassVar

from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.families import _config, _gguf
from lorikeet.models.families._contract import DecoderSpec, Family, Names
from lorikeet.models.families.qwen2 import upper_windows


class Qwen3(Family):
    """Head width 128 unless the config says otherwise, whatever the width."""

    kind: ClassVar[str] = "qwen3"
    model_type: ClassVar[str] = "qwen3"
    architecture: ClassVar[str] = "Qwen3ForCausalLM"
    gguf_architecture: ClassVar[str | None] = "qwen3"

    def spec(self, config: dict[str, Any]) -> DecoderSpec:
        shape = _config.sizes(config, max_position=32768, head_dim=128)
        bias = bool(config.get("attention_bias", False))
        return DecoderSpec(
            shape=shape,
            rope=_config.rope(config, shape),
            norm_eps=_config.number(config, "rms_norm_eps") or 1e-6,
            tied=_config.tied(config, False),
            attention_bias=bias,
            output_bias=bias,
            names=Names(q_norm="self_attn.q_norm", k_norm="self_attn.k_norm"),
            activation=_config.activation(config),
            windows=upper_windows(config, shape.layers),
        )

    def config_from_gguf(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return _gguf.read_settings(checkpoint, self.architecture, self.model_type)

    def gguf_metadata(self, spec: DecoderSpec) -> dict[str, Any]:
        _gguf.check_plain(spec)  # biases on q, k and v come with one on o
        return super().gguf_metadata(spec)
