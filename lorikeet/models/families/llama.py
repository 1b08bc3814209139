"""Llama (Touvron et al. 2023) and its relatives with the same config: SmolLM, TinyLlama, Vicuna, Llama 3."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lorikeet.base.errors import ModelError
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.families import _config, _gguf
from lorikeet.models.families._contract import DecoderSpec, Family
from lorikeet.ops.rope import Rope


class Llama(Family):
    """Grouped-query attention, rotary halves, SwiGLU, RMSNorm, tied or untied head."""

    kind: ClassVar[str] = "llama"
    model_type: ClassVar[str] = "llama"
    architecture: ClassVar[str] = "LlamaForCausalLM"
    gguf_architecture: ClassVar[str | None] = "llama"

    def matches(self, checkpoint: Checkpoint) -> bool:
        # Mixtral's GGUF files say llama, too, and differ by their experts
        experts = checkpoint.layout == "gguf" and checkpoint.config.get("llama.expert_count")
        return not experts and super().matches(checkpoint)

    def spec(self, config: dict[str, Any]) -> DecoderSpec:
        shape = _config.sizes(config)
        bias = bool(config.get("attention_bias", False))
        return DecoderSpec(
            shape=shape,
            rope=_config.rope(config, shape),
            norm_eps=_config.number(config, "rms_norm_eps") or 1e-6,
            tied=_config.tied(config, False),
            attention_bias=bias,
            output_bias=bias,
            mlp_bias=bool(config.get("mlp_bias", False)),
            activation=_config.activation(config),
        )

    def config_from_gguf(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config, names = _gguf.read_settings(checkpoint, self.architecture, self.model_type), set(checkpoint.names())
        config["attention_bias"] = "blk.0.attn_q.bias" in names
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in names
        if "rope_freqs.weight" in names:
            config["rope_scaling"] = llama3_scaling(checkpoint.read("rope_freqs.weight"), config)
        return config

    def from_gguf(self, name: str, tensor: Tensor, spec: DecoderSpec) -> Tensor:
        """GGUF interleaves the two halves of each q and k head; put them back side by side."""
        heads = _rotated_heads(name, spec)
        return tensor if heads is None else _halves(tensor, heads, -1, 2)

    def to_gguf(self, name: str, tensor: Tensor, spec: DecoderSpec) -> Tensor:
        """See `from_gguf`."""
        heads = _rotated_heads(name, spec)
        return tensor if heads is None else _halves(tensor, heads, 2, -1)

    def gguf_metadata(self, spec: DecoderSpec) -> dict[str, Any]:
        _gguf.check_plain(spec, biases=True, kinds="llama3")
        return super().gguf_metadata(spec)


def _rotated_heads(name: str, spec: DecoderSpec) -> int | None:
    """How many heads a rotated projection has; None for other tensors."""
    projections = {"q_proj": spec.shape.heads, "k_proj": spec.shape.kv_heads}
    return next((heads for projection, heads in projections.items() if f".{projection}." in name), None)


def _halves(tensor: Tensor, heads: int, outer: int, inner: int) -> Tensor:
    """Each head's rows as [outer, inner], turned: (-1, 2) takes interleaved halves apart, (2, -1) interleaves them."""
    return tensor.reshape(heads, outer, inner, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def llama3_scaling(factors: Tensor, config: dict[str, Any]) -> dict[str, Any]:
    """The llama3 rope settings that give a GGUF file's `rope_freqs` [E / 2], by which frequencies are divided.

    The file keeps the result but not the settings; only `factor` differs between the published models (8 and 32), and
    it is the largest of the divisors. Raises ModelError where the settings found do not give the file's numbers."""
    settings = {
        "rope_type": "llama3",
        "factor": round(factors.max().item(), 3),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    head_dim, theta, length = config["head_dim"], config["rope_theta"], config["max_position_embeddings"]
    plain, _ = Rope(head_dim, theta, length).frequencies(0)
    scaled, _ = Rope(head_dim, theta, length, settings).frequencies(0)
    if factors.shape != plain.shape or not torch.allclose(plain / scaled, factors.float(), rtol=1e-3):
        raise ModelError(
            "this GGUF file carries rope factors that Llama 3's settings do not give",
            given=f"{len(factors)} factors from {factors.min():.4g} to {factors.max():.4g}",
            try_="the same model as a Hugging Face folder",
        )
    return settings
