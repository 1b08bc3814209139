"""What a model family says: which checkpoints are its own, its sizes, and where each tensor lies in them.

Names inside Lorikeet are the Hugging Face checkpoint's own (`model.layers.0.self_attn.q_proj`). A family translates a
GGUF file's metadata and names to those, and back; `config.json` needs no translation.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from lorikeet.base.errors import ModelError
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.build import Build
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.decoder import Decoder
from lorikeet.models.families import _gguf
from lorikeet.models.gguf_layouts._contract import GGUFLayout
from lorikeet.models.spec import DecoderSpec, Names, Spec

__all__ = ["DecoderSpec", "Family", "Names", "Spec"]


class Family(GGUFLayout):
    """Base of the families; a file of this folder defines one subclass."""

    kind: ClassVar[str]
    architecture: ClassVar[str]  # config.json's architectures[0]
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

    def spec(self, config: dict[str, Any]) -> Spec:
        """From a Hugging Face config.json. Raises ModelError for a missing or unknown setting."""
        raise NotImplementedError

    def network(self, spec: Any, build: Build) -> CausalLM:
        """The network, empty. `spec` is what `spec` gave, here and below."""
        return Decoder(spec, build)

    def ready(self, model: CausalLM) -> None:
        """Called when the network has its weights."""

    def config_from_gguf(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """A config.json that says what a GGUF file's metadata and tensors say."""
        raise NotImplementedError

    def read(self, checkpoint: Checkpoint, name: str, spec: Any) -> Tensor:
        """The tensor that goes by `name` in a Hugging Face checkpoint of the family. Raises CheckpointError."""
        if checkpoint.layout == "gguf":
            return self.from_gguf(name, checkpoint.read(self.gguf_name(name)), spec)
        return checkpoint.read(name)

    def gguf_tables(self) -> tuple[dict[str, str], dict[str, str]]:
        """See `GGUFLayout.gguf_tables`. A family says where it differs from most."""
        return GGUF_TOP | self.gguf_top, GGUF_LAYER | self.gguf_layer

    def from_gguf(self, name: str, tensor: Tensor, spec: DecoderSpec) -> Tensor:
        """Undo what the conversion to GGUF did to a tensor's values or layout: the inverse of `to_gguf`."""
        return tensor

    def gguf_layout(self, spec: Any) -> GGUFLayout:
        """How a GGUF file holds the network. Raises ModelError where llama.cpp has no such network."""
        if self.written_as is None:
            raise ModelError(
                "llama.cpp has no network of this kind",
                given=spec.shape.config.get("model_type") or self.kind,
                allowed="those of docs/models.md",
                try_="lorikeet merge, and an engine for Hugging Face folders",
            )
        return self

    def gguf_metadata(self, spec: Any) -> dict[str, Any]:
        """See `GGUFLayout.gguf_metadata`. Families check first what their graph in llama.cpp does not know."""
        assert self.written_as is not None
        return _gguf.written_settings(spec, self.written_as)

    def gguf_others(self, spec: Any) -> dict[str, Tensor]:
        """See `GGUFLayout.gguf_others`."""
        return _gguf.rope_factors(spec.rope)

    def gguf_notes(self, spec: Any) -> list[str]:
        """See `GGUFLayout.gguf_notes`."""
        return _gguf.window_note(spec)


# Hugging Face decoder names to GGUF's (gguf-py, `constants.MODEL_TENSOR`)
GGUF_TOP = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
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
