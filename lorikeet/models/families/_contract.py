"""What a model family says: which checkpoints are its own, its sizes, and where each tensor lies in them.

Names inside Lorikeet are Hugging Face's (`model.layers.0.self_attn.q_proj`). A family translates a GGUF file's
metadata and names to those; `config.json` needs no translation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lorikeet.base.errors import ModelError
from lorikeet.models.causal_lm import Shape
from lorikeet.ops.rope import Rope


def whole(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """The whole number at `key` of a config.json. Raises ModelError where it is missing or something else."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        lacks = value is None
        raise ModelError(
            f"config.json lacks '{key}'" if lacks else f"config.json: '{key}' is no size",
            given=" ".join(sorted(config)[:20]) if lacks else repr(value),
            allowed="a whole number >= 1",
            try_="the config.json that belongs to the weights",
        )
    return value


@dataclass(frozen=True)
class DecoderSpec:
    """Everything the native decoder needs to know to build itself."""

    shape: Shape
    rope: Rope
    norm_eps: float
    tied: bool
    attention_bias: bool = False  # on q, k, v
    output_bias: bool = False  # on o
    mlp_bias: bool = False
    window: int | None = None


class Family:
    """Base of the families; a file of this folder defines one subclass."""

    kind: ClassVar[str]
    model_type: ClassVar[str]  # config.json's model_type
    architecture: ClassVar[str]  # config.json's architectures[0]
    gguf_architecture: ClassVar[str | None] = None  # general.architecture

    def spec(self, config: dict[str, Any]) -> DecoderSpec:
        """From a Hugging Face config.json. Raises ModelError for a missing or unknown setting."""
        raise NotImplementedError

    def config_from_gguf(self, metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        """A config.json that says what a GGUF file's metadata and tensor shapes say."""
        raise NotImplementedError

    def gguf_name(self, name: str) -> str:
        """The GGUF name of a tensor."""
        return GGUF_NAMES.translate(name)

    def from_gguf(self, name: str, tensor: Tensor, spec: DecoderSpec) -> Tensor:
        """Undo what the conversion to GGUF did to a tensor's layout."""
        return tensor


class _GgufNames:
    """Hugging Face decoder names to GGUF's (gguf-py, `constants.MODEL_TENSOR`)."""

    top: ClassVar[dict[str, str]] = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    layer: ClassVar[dict[str, str]] = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }

    def translate(self, name: str) -> str:
        stem, suffix = name.rsplit(".", 1)
        if stem in self.top:
            return f"{self.top[stem]}.{suffix}"
        _, _, index, rest = stem.split(".", 3)
        return f"blk.{index}.{self.layer[rest]}.{suffix}"


GGUF_NAMES = _GgufNames()
