"""Qwen 2 and 2.5 (Yang et al. 2024): Llama's network with biases on q, k, v, and windows on upper layers at most."""

from __future__ import annotations

from typing import Any, ClassVar

from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.families import _config, _gguf
from lorikeet.models.families._contract import DecoderSpec, Family


class Qwen2(Family):
    """`max_window_layers` layers see everything; those above have the window, where it is in use."""

    kind: ClassVar[str] = "qwen2"
    model_type: ClassVar[str] = "qwen2"
    architecture: ClassVar[str] = "Qwen2ForCausalLM"
    gguf_architecture: ClassVar[str | None] = "qwen2"

    def spec(self, config: dict[str, Any]) -> DecoderSpec:
        shape = _config.sizes(config, max_position=32768)
        return DecoderSpec(
            shape=shape,
            rope=_config.rope(config, shape),
            norm_eps=_config.number(config, "rms_norm_eps") or 1e-6,
            tied=_config.tied(config, False),
            attention_bias=True,
            activation=_config.activation(config),
            windows=upper_windows(config, shape.layers),
        )

    def config_from_gguf(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return _gguf.read_settings(checkpoint, self.architecture, self.model_type)

    def gguf_metadata(self, spec: DecoderSpec) -> dict[str, Any]:
        _gguf.check_plain(spec)
        return super().gguf_metadata(spec)


def upper_windows(config: dict[str, Any], layers: int) -> tuple[int | None, ...]:
    """Qwen's way to say which layers have a window: `use_sliding_window` and `max_window_layers`."""
    if not config.get("use_sliding_window"):
        return ()
    below = int(config.get("max_window_layers", 28))
    pattern = ["full_attention" if layer < below else "sliding_attention" for layer in range(layers)]
    return _config.windows(config, layers, pattern=pattern)
