"""What a network is made of, as a family says it: plain values from which a network is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from lorikeet.models.build import Build
from lorikeet.models.causal_lm import Shape
from lorikeet.models.mlp import Mlp
from lorikeet.ops.rope import Rope
from lorikeet.ops.swiglu import Activation


@dataclass(frozen=True)
class Spec:
    """Of any network."""

    shape: Shape


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
class DecoderSpec(Spec):
    """Everything the native decoder needs to know to build itself."""

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
        """The layer's feed-forward, (x [T, D], norm before it) -> [T, D]."""
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
