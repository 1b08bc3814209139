"""Gemma 3's text network (Gemma Team 2025): five layers with a window to one that sees everything, each kind with a
rope of its own; norms before and behind attention and feed-forward and on q and k; a scaled, tied embedding.

A model with a vision tower (`model_type` gemma3) is read as its text part, which is then saved as `gemma3_text`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from lorikeet.base.errors import ModelError
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.families import _config, _gguf, gemma2
from lorikeet.models.families._contract import DecoderSpec
from lorikeet.models.families.gemma2 import Gemma2, check_scale
from lorikeet.models.gguf_layouts._contract import not_the_same

NAMES = replace(gemma2.NAMES, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")
TEXT_PARTS = ("language_model.model.", "model.language_model.")  # where the text part's tensors lie, old and new


class Gemma3(Gemma2):
    """Gemma 2's parts with norms on q and k; norm weights and GGUF names are as there."""

    kind: ClassVar[str] = "gemma3"
    model_type: ClassVar[str] = "gemma3_text"
    architecture: ClassVar[str] = "Gemma3ForCausalLM"
    gguf_architecture: ClassVar[str | None] = "gemma3"

    def matches(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.config.get("model_type") == "gemma3" or super().matches(checkpoint)

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        if checkpoint.config.get("model_type") != "gemma3":
            return super().config(checkpoint)
        text = checkpoint.config.get("text_config")
        if not isinstance(text, dict):
            raise ModelError(f"{checkpoint.path}: config.json lacks 'text_config'", given="model_type gemma3")
        return {**_DEFAULTS, **text, "model_type": self.model_type, "architectures": [self.architecture]}

    def read(self, checkpoint: Checkpoint, name: str, spec: DecoderSpec) -> Tensor:
        if checkpoint.config.get("model_type") == "gemma3":
            inside = name.removeprefix("model.")
            known = set(checkpoint.names())
            return checkpoint.read(next((f"{p}{inside}" for p in TEXT_PARTS if f"{p}{inside}" in known), name))
        return super().read(checkpoint, name, spec)

    def spec(self, config: dict[str, Any]) -> DecoderSpec:
        if config.get("use_bidirectional_attention"):
            raise ModelError("a Gemma 3 that reads both ways (an embedding model) does not write text")
        shape = _config.sizes(config, max_position=131072, head_dim=256)
        every = _config.whole(config, "sliding_window_pattern", config.get("_sliding_window_pattern") or 6)
        pattern = ["full_attention" if not (i + 1) % every else "sliding_attention" for i in range(shape.layers)]
        ropes = config.get("rope_parameters") or {}
        far = ropes.get("full_attention") or config.get("rope_scaling") or {}
        near = ropes.get("sliding_attention") or {"rope_theta": config.get("rope_local_base_freq") or 10000.0}
        return DecoderSpec(
            shape=shape,
            rope=_config.rope_from(far, config, shape, theta=1e6),
            local_rope=_config.rope_from(near, config, shape, theta=1e4),
            norm_eps=_config.number(config, "rms_norm_eps") or 1e-6,
            norm_offset=1.0,
            tied=_config.tied(config, True),
            attention_bias=bool(config.get("attention_bias", False)),
            output_bias=bool(config.get("attention_bias", False)),
            names=NAMES,
            activation=_config.activation(config, "gelu_pytorch_tanh", key="hidden_activation"),
            windows=_config.windows({"sliding_window": 4096} | config, shape.layers, pattern=pattern),
            scale=(_config.number(config, "query_pre_attn_scalar") or 256.0) ** -0.5,
            # no cap on scores: published configs have none, and transformers reads the setting but never applies it
            final_softcap=_config.number(config, "final_logit_softcapping"),
            embedding_scale=math.sqrt(shape.width),
        )

    def config_from_gguf(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config, metadata = _gguf.read_settings(checkpoint, self.architecture, self.model_type), checkpoint.config
        head_dim = config["head_dim"]
        # the file does not say by what scores are divided: sqrt(E), but the 27B model sqrt(D / H)
        big = config["num_hidden_layers"] == 62
        scaling = config.pop("rope_scaling", None)
        far = {"rope_type": "default", "rope_theta": metadata.get("gemma3.rope.freq_base", 1e6)}
        del config["rope_theta"], config["hidden_act"]
        return config | {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"] if big else head_dim,
            "sliding_window": metadata.get("gemma3.attention.sliding_window"),
            "rope_parameters": {
                "full_attention": far | (scaling or {}),
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": metadata.get("gemma3.rope.freq_base_swa", 10000.0),
                },
            },
        }

    def gguf_metadata(self, spec: DecoderSpec) -> dict[str, Any]:
        check_scale(spec, big=62)
        window = next((width for width in spec.windows if width is not None), None)
        expected = tuple(None if (i + 1) % 6 == 0 else window for i in range(spec.shape.layers))
        if window is None or spec.windows != expected:
            raise not_the_same("five layers with a window, then one without", spec.windows)
        if spec.final_softcap is not None or spec.softcap is not None:
            raise not_the_same("it caps nothing", "caps on scores or logits", "none")
        near = spec.local_rope
        if near is not None and near.kind != "default":
            raise not_the_same("no scaling in layers with a window", near.scaling)
        found = super(Gemma2, self).gguf_metadata(spec) | {"gemma3.attention.sliding_window": window}
        return found if near is None else found | {"gemma3.rope.freq_base_swa": float(near.theta)}


# what published text_configs leave to transformers' defaults (Gemma3TextConfig)
_DEFAULTS = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
