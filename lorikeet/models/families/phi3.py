"""Phi-3, 3.5 and Phi-4 (Abdin et al. 2024): q, k and v in one tensor, gate and up in another, longrope."""

from __future__ import annotations

from typing import Any, ClassVar

from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.families import _config, _gguf
from lorikeet.models.families._contract import DecoderSpec, Family, Names


class Phi3(Family):
    """The fused projections are linears of their own: an adapter meets qkv_proj and gate_up_proj, as PEFT does."""

    kind: ClassVar[str] = "phi3"
    model_type: ClassVar[str] = "phi3"
    architecture: ClassVar[str] = "Phi3ForCausalLM"
    gguf_architecture: ClassVar[str | None] = "phi3"

    def spec(self, config: dict[str, Any]) -> DecoderSpec:
        shape = _config.sizes(config, max_position=4096)
        rope = _config.rope(_longrope(config), shape)
        return DecoderSpec(
            shape=shape,
            rope=rope,
            norm_eps=_config.number(config, "rms_norm_eps") or 1e-5,
            tied=_config.tied(config, False),
            names=Names(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",)),
            activation=_config.activation(config),
            windows=_config.windows(config, shape.layers),
        )

    def config_from_gguf(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config, names = _gguf.read_settings(checkpoint, self.architecture, self.model_type), set(checkpoint.names())
        metadata = checkpoint.config
        config["sliding_window"] = metadata.get("phi3.attention.sliding_window") or None
        rotated = metadata.get("phi3.rope.dimension_count", config["head_dim"])
        config["partial_rotary_factor"] = rotated / config["head_dim"]
        if "rope_factors_long.weight" in names:
            config["original_max_position_embeddings"] = metadata["phi3.rope.scaling.original_context_length"]
            config["rope_scaling"] = {
                "rope_type": "longrope",
                "short_factor": checkpoint.read("rope_factors_short.weight").tolist(),
                "long_factor": checkpoint.read("rope_factors_long.weight").tolist(),
                "attention_factor": metadata.get("phi3.rope.scaling.attn_factor"),
            }
        return config

    def gguf_metadata(self, spec: DecoderSpec) -> dict[str, Any]:
        _gguf.check_plain(spec, kinds="longrope")
        found: dict[str, Any] = {}
        if spec.rope.kind == "longrope":
            scaling = spec.rope.scaling
            original = scaling.get("original_max_position_embeddings") or spec.rope.max_position
            found["phi3.rope.scaling.original_context_length"] = int(original)
            found["phi3.rope.scaling.attn_factor"] = spec.rope.frequencies(0)[1]
        window = next((width for width in spec.windows if width is not None), 0)
        return super().gguf_metadata(spec) | found | {"phi3.attention.sliding_window": window}

    def gguf_notes(self, spec: DecoderSpec) -> list[str]:
        found = super().gguf_notes(spec)  # it reads the window, and switches it off
        if spec.rope.kind != "longrope":
            return found
        how = f"open it with -c {spec.rope.unchanged_within()} for texts up to that"
        return [*found, f"llama.cpp takes longrope's factors by its context: {how}"]


def _longrope(config: dict[str, Any]) -> dict[str, Any]:
    """Early configs call longrope `su` or `yarn`; only these models ever did."""
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    settings = config.get(key)
    if isinstance(settings, dict) and (settings.get("rope_type") or settings.get("type")) in ("su", "yarn"):
        return config | {key: settings | {"rope_type": "longrope"}}
    return config
