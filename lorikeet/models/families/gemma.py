"""Gemma 1 (Gemma Team 2024): Llama's network with norm weights kept less one, GeGLU and a scaled, tied embedding."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.families import _config, _gguf
from lorikeet.models.families._contract import DecoderSpec, Family
from lorikeet.models.gguf_layouts._contract import not_the_same


class Gemma(Family):
    """Head width 256 unless the config says otherwise; GGUF files keep norm weights whole."""

    kind: ClassVar[str] = "gemma"
    model_type: ClassVar[str] = "gemma"
    architecture: ClassVar[str] = "GemmaForCausalLM"
    gguf_architecture: ClassVar[str | None] = "gemma"

    def spec(self, config: dict[str, Any]) -> DecoderSpec:
        shape = _config.sizes(config, max_position=8192, head_dim=256)
        bias = bool(config.get("attention_bias", False))
        said = config.get("hidden_activation") or config.get("hidden_act")
        return DecoderSpec(
            shape=shape,
            rope=_config.rope(config, shape),
            norm_eps=_config.number(config, "rms_norm_eps") or 1e-6,
            norm_offset=1.0,
            tied=_config.tied(config, True),
            attention_bias=bias,
            output_bias=bias,
            # published configs say "gelu" and mean the tanh form, as transformers has it, too
            activation="gelu_tanh" if said in ("gelu", None) else _config.activation({"hidden_act": said}),
            embedding_scale=math.sqrt(shape.width),
        )

    def config_from_gguf(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = _gguf.read_settings(checkpoint, self.architecture, self.model_type)
        return config | {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}

    def from_gguf(self, name: str, tensor: Tensor, spec: DecoderSpec) -> Tensor:
        return tensor - 1 if name.endswith("norm.weight") else tensor

    def to_gguf(self, name: str, tensor: Tensor, spec: DecoderSpec) -> Tensor:
        return tensor.float() + 1 if name.endswith("norm.weight") else tensor

    def gguf_metadata(self, spec: DecoderSpec) -> dict[str, Any]:
        _gguf.check_plain(spec, biases=True, activation="gelu_tanh")
        if spec.attention_bias:
            raise not_the_same("it has no place for these biases", "attention_bias true", "none")
        if not spec.tied and self.written_as != "gemma3":
            raise not_the_same("the head is the embedding", "tie_word_embeddings false", "true")
        return super().gguf_metadata(spec)
