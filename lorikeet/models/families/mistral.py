"""Mistral (Jiang et al. 2023): Llama's network with a sliding window on every layer (v0.1) or none (later)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.families import _config
from lorikeet.models.families._contract import DecoderSpec
from lorikeet.models.families.llama import Llama


class Mistral(Llama):
    """GGUF files of Mistral models say `llama`, and are read as such (llama.cpp knows no window for them either)."""

    kind: ClassVar[str] = "mistral"
    model_type: ClassVar[str] = "mistral"
    architecture: ClassVar[str] = "MistralForCausalLM"
    gguf_architecture: ClassVar[str | None] = None

    def matches(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.layout != "gguf" and checkpoint.config.get("model_type") == self.model_type

    @property
    def written_as(self) -> str | None:
        return "llama"

    def spec(self, config: dict[str, Any]) -> DecoderSpec:
        spec = super().spec(config)
        return replace(spec, windows=_config.windows(config, spec.shape.layers))
