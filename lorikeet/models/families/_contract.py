"""What a model family says: which checkpoints are its own, its sizes, and where each tensor lies in them.

Names inside Lorikeet are the Hugging Face checkpoint's own (`model.layers.0.self_attn.q_proj`). A family translates a
GGUF file's metadata and names to those; `config.json` needs no translation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.build import Build
from lorikeet.models.causal_lm import Shape
from lorikeet.models.mlp import Mlp
from lorikeet.ops.rope import Rope
from lorikeet.ops.swiglu import Activation


@dataclass(frozen=True)
class Names:
    """What a checkpoint calls the parts. Those of a layer stand behind `{layers}.{index}.`; None: no such part."""

    embedding: str = "model.embed_tokens"
    layers: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")  # or one that holds the three
    output: str = "self_attn.o_proj"
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")  # or one that holds both, gate first
    down: str = "mlp.down_proj"
    before_attention: str = "input_layernorm"
    before_mlp: str = "post_attention_layernorm"
    after_attention: str | None = None
    after_mlp: str | None = None
    q_norm: str | None = None
    k_norm: str | None = None


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
    names: Names = Names()
    activation: Activation = "silu"
    windows: tuple[int | None, ...] = ()  # per layer: how many positions back it sees; empty: none has a window
    local_rope: Rope | None = None  # of the layers with a window, where they have one of their own
    scale: float | None = None  # of attention scores; None: 1 / sqrt(E)
    softcap: float | None = None  # of attention scores
    final_softcap: float | None = None  # of logits
    norm_offset: float = 0.0  # added to each norm's weight
    embedding_scale: float | None = None
    experts: Callable[[int, DecoderSpec, Build], nn.Module] | None = None  # makes the feed-forward; None: a dense one

    def feed_forward(self, layer: int, build: Build) -> nn.Module:
        """The layer's feed-forward, [T, D] -> [T, D]."""
        if self.experts is not None:
            return self.experts(layer, self, build)
        inside, names = f"{self.names.layers}.{layer}", self.names
        return Mlp(
            build,
            tuple(f"{inside}.{name}" for name in names.gate_up),
            f"{inside}.{names.down}",
            self.shape.width,
            self.shape.ffn_width,
            activation=self.activation,
            bias=self.mlp_bias,
        )

    def window(self, layer: int) -> int | None:
        """How many positions back the layer sees, itself included; None: all."""
        return self.windows[layer] if self.windows else None


class Family:
    """Base of the families; a file of this folder defines one subclass."""

    kind: ClassVar[str]
    model_type: ClassVar[str]  # config.json's model_type
    architecture: ClassVar[str]  # config.json's architectures[0]
    gguf_architecture: ClassVar[str | None] = None  # general.architecture
    gguf_top: ClassVar[dict[str, str]] = {}  # where the family's names differ from GGUF_TOP
    gguf_layer: ClassVar[dict[str, str]] = {}  # and from GGUF_LAYER

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint is this family's."""
        if checkpoint.layout == "gguf":
            return checkpoint.config.get("general.architecture") == self.gguf_architecture is not None
        return checkpoint.config.get("model_type") == self.model_type

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """A Hugging Face config.json of the checkpoint, whatever its layout."""
        return self.config_from_gguf(checkpoint) if checkpoint.layout == "gguf" else checkpoint.config

    def spec(self, config: dict[str, Any]) -> DecoderSpec:
        """From a Hugging Face config.json. Raises ModelError for a missing or unknown setting."""
        raise NotImplementedError

    def config_from_gguf(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """A config.json that says what a GGUF file's metadata and tensors say."""
        raise NotImplementedError

    def read(self, checkpoint: Checkpoint, name: str, spec: DecoderSpec) -> Tensor:
        """The tensor that goes by `name` in a Hugging Face checkpoint of the family. Raises CheckpointError."""
        if checkpoint.layout == "gguf":
            return self.from_gguf(name, checkpoint.read(self.gguf_name(name)), spec)
        return checkpoint.read(name)

    def gguf_name(self, name: str) -> str:
        """The GGUF name of a tensor."""
        stem, suffix = name.rsplit(".", 1)
        if stem in GGUF_TOP | self.gguf_top:
            return f"{(GGUF_TOP | self.gguf_top)[stem]}.{suffix}"
        _, _, index, rest = stem.split(".", 3)
        return f"blk.{index}.{(GGUF_LAYER | self.gguf_layer)[rest]}.{suffix}"

    def from_gguf(self, name: str, tensor: Tensor, spec: DecoderSpec) -> Tensor:
        """Undo what the conversion to GGUF did to a tensor's values or layout."""
        return tensor


# Hugging Face decoder names to GGUF's (gguf-py, `constants.MODEL_TENSOR`)
GGUF_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
GGUF_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
