"""How a GGUF file holds the networks of one architecture: their settings, tensor names and layouts.

Native families are layouts themselves, beside what they read from GGUF files. The files of this folder are those of
networks that transformers builds, by config.json's model_type: such files are written, and read by llama.cpp alone.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from lorikeet.base.errors import ModelError
from lorikeet.models.spec import Spec


class GGUFLayout:
    """Base of the layouts; a file of this folder defines one subclass."""

    model_type: ClassVar[str]  # config.json's model_type
    gguf_architecture: ClassVar[str | None] = None  # general.architecture
    gguf_inside: ClassVar[str] = "model."  # what the names of the network's tensors begin with, all but the head's
    gguf_top: ClassVar[dict[str, str]]  # modules outside the layers, without `gguf_inside`: their GGUF names
    gguf_layer: ClassVar[dict[str, str]]  # modules of a layer

    @property
    def written_as(self) -> str | None:
        """general.architecture of the files that are written; None: llama.cpp has no such network."""
        return self.gguf_architecture

    def gguf_name(self, name: str) -> str:
        """The GGUF name of a checkpoint's tensor. Raises KeyError or ValueError for one that has none."""
        stem, suffix = name.removeprefix(self.gguf_inside).rsplit(".", 1)
        top, layer = self.gguf_tables()
        if stem in top:
            return f"{top[stem]}.{suffix}"
        _, index, rest = stem.split(".", 2)  # h.0.ln_1, layers.0.input_layernorm
        return f"blk.{index}.{layer[rest]}.{suffix}"

    def gguf_tables(self) -> tuple[dict[str, str], dict[str, str]]:
        """The GGUF names of modules outside the layers, and of a layer's."""
        return self.gguf_top, self.gguf_layer

    def gguf_place(self, name: str, spec: Any) -> tuple[str, int | None]:
        """The GGUF name of a checkpoint's tensor, and which entry of the stack it is where experts lie in one."""
        return self.gguf_name(name), None

    def to_gguf(self, name: str, tensor: Tensor, spec: Any) -> Tensor:
        """What the conversion to GGUF does to a tensor's values or layout."""
        return tensor

    def lora_b_to_gguf(self, name: str, tensor: Tensor, spec: Any) -> Tensor:
        """The same for the B [out, R] of a LoRA on the tensor `name`: its rows are the weight's."""
        return self.to_gguf(name, tensor, spec)

    def gguf_metadata(self, spec: Any) -> dict[str, Any]:
        """The settings, under GGUF's keys. Raises ModelError for a network that llama.cpp computes otherwise."""
        raise NotImplementedError

    def gguf_others(self, spec: Any) -> dict[str, Tensor]:
        """Tensors that follow from settings, by their GGUF names: rope's factors."""
        return {}

    def gguf_notes(self, spec: Any) -> list[str]:
        """What llama.cpp leaves out of this network, for people to know: one sentence each."""
        return []


def not_the_same(what: str, given: object, allowed: object = None) -> ModelError:
    """The error about a network for which llama.cpp computes something else."""
    return ModelError(
        f"llama.cpp computes this network otherwise: {what}",
        given=given,
        allowed=allowed,
        try_="serve it with lorikeet serve, or merge it and serve the folder with vLLM",
    )


def whole(spec: Spec, key: str, default: int | None = None) -> int:
    """A size of config.json. Raises ModelError where it is none."""
    value = spec.shape.config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"config.json: '{key}' is no size", given=repr(value), allowed="a whole number >= 1")
    return value


def check_activation(name: object) -> None:
    """Raise ModelError for an activation of the feed-forward that is no GELU; llama.cpp computes the tanh form of it,
    which is within 5e-4 of the exact one."""
    known = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
    if name not in known:
        raise not_the_same("another activation", name, " ".join(known))
