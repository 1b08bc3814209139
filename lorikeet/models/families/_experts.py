"""What families with experts have in common: their sizes, which layers are dense, and three ways experts are stored.

A published Hugging Face folder has a tensor per expert; transformers 5 can also write them stacked, gate and up in
one [E, 2F, D]; a GGUF file has them stacked by kind (one by one where an early llama.cpp wrote it).
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from lorikeet.base.errors import ModelError
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.build import Build
from lorikeet.models.experts import STACKED_OWNER, ExpertNames, ExpertSizes, Mixture
from lorikeet.models.families import _config
from lorikeet.models.families._contract import DecoderSpec, Family
from lorikeet.models.gguf_layouts._contract import not_the_same

_NAMES: WeakKeyDictionary[Any, frozenset[str]] = WeakKeyDictionary()  # asked for every expert: built once


class MixtureFamily(Family):
    """Base of the families with experts."""

    expert_names: ClassVar[ExpertNames] = ExpertNames()

    def read(self, checkpoint: Checkpoint, name: str, spec: DecoderSpec) -> Tensor:
        names, known = self.expert_names, _known(checkpoint)
        layer = re.escape(spec.names.layers) + r"\.(\d+)"
        found = re.fullmatch(rf"{layer}\.{names.owner}\.experts\.(\d+)\.(.+)\.weight", name)
        if found is None:
            other = name.replace(f".{names.owner}.", f".{STACKED_OWNER}.")
            if checkpoint.layout != "gguf" and name not in known and other in known:  # the router, beside a stack
                return checkpoint.read(other)
            return super().read(checkpoint, name, spec)
        index, expert, leaf = found[1], int(found[2]), found[3]
        if checkpoint.layout == "gguf":
            stack, _ = self.gguf_place(name, spec)
            alone = stack.replace("_exps.", f".{expert}.")
            return checkpoint.read(alone) if alone in known else _part(checkpoint, stack, expert)
        owner = f"{spec.names.layers}.{index}.{STACKED_OWNER}.experts"
        if name in known or f"{owner}.down_proj" not in known:
            return checkpoint.read(name)
        if leaf == names.down:
            return _part(checkpoint, f"{owner}.down_proj", expert)
        both = _part(checkpoint, f"{owner}.gate_up_proj", expert)
        return both.chunk(2)[(names.gate, names.up).index(leaf)]

    def gguf_place(self, name: str, spec: DecoderSpec) -> tuple[str, int | None]:
        """See `GGUFLayout.gguf_place`: experts lie stacked by kind."""
        names = self.expert_names
        owner = rf"{re.escape(spec.names.layers)}\.(\d+)\.{names.owner}"
        found = re.fullmatch(rf"{owner}\.experts\.(\d+)\.(.+)\.weight", name)
        if found is None:
            return super().gguf_place(name, spec)
        kind = {names.gate: "ffn_gate", names.up: "ffn_up", names.down: "ffn_down"}[found[3]]
        return f"blk.{found[1]}.{kind}_exps.weight", int(found[2])

    def gguf_expert_settings(self, spec: DecoderSpec, *, normalised: bool = True) -> dict[str, Any]:
        """Metadata about experts. `normalised`: whether llama.cpp divides a token's shares by their sum. Raises
        ModelError where this network does otherwise, or has layers without experts."""
        assert isinstance(spec.experts, partial)
        _, sizes, dense = spec.experts.args
        if dense:
            raise not_the_same("every layer has experts", f"layers {sorted(dense)} without", "none")
        if sizes.normalised != normalised:
            raise not_the_same("norm_topk_prob", sizes.normalised, normalised)
        found: dict[str, Any] = {"expert_count": sizes.count, "expert_used_count": sizes.chosen}
        if self.written_as != "llama":  # an expert of Mixtral has the width of a feed-forward
            found["expert_feed_forward_length"] = sizes.width
        if sizes.shared_width:
            found["expert_shared_feed_forward_length"] = sizes.shared_width
        return {f"{self.written_as}.{key}": value for key, value in found.items()}

    def with_experts(self, spec: DecoderSpec, sizes: ExpertSizes, dense: frozenset[int] = frozenset()) -> DecoderSpec:
        """The spec with experts in every layer but the `dense` ones. Raises ModelError where k exceeds E."""
        if sizes.chosen > sizes.count:
            raise ModelError(
                "config.json: each token goes to more experts than there are",
                given=f"num_experts_per_tok {sizes.chosen} of {sizes.count} experts",
                try_="the config.json that belongs to the weights",
            )
        return replace(spec, experts=partial(_feed_forward, self.expert_names, sizes, dense))


def _feed_forward(
    names: ExpertNames, sizes: ExpertSizes, dense: frozenset[int], layer: int, spec: DecoderSpec, build: Build
) -> nn.Module:
    if layer in dense:
        return replace(spec, experts=None).feed_forward(layer, build)
    return Mixture(build, f"{spec.names.layers}.{layer}", names, sizes, spec.shape.width, spec.activation)


def dense_layers(config: dict[str, Any], layers: int) -> frozenset[int]:
    """Qwen's way to say which layers have no experts: `mlp_only_layers`, and all but every `decoder_sparse_step`-th."""
    step, only = _config.whole(config, "decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    if not isinstance(only, list) or not all(isinstance(layer, int) for layer in only):
        raise ModelError(
            "config.json: 'mlp_only_layers' is no list of layers", given=repr(only)[:120], allowed="[0, 3], say"
        )
    return frozenset(layer for layer in range(layers) if layer in only or (layer + 1) % step)


def gguf_experts(checkpoint: Checkpoint) -> dict[str, Any]:
    """How many experts a GGUF file has, and how many of them a token uses, as config.json says it."""
    prefix = checkpoint.config.get("general.architecture")
    return {
        "num_experts": checkpoint.config.get(f"{prefix}.expert_count"),
        "num_experts_per_tok": checkpoint.config.get(f"{prefix}.expert_used_count"),
    }


def gguf_expert_width(checkpoint: Checkpoint) -> int:
    """The width of one expert: what the metadata say, else what the first layer's tensor shows."""
    prefix, name = checkpoint.config.get("general.architecture"), "blk.0.ffn_gate_exps.weight"
    said = checkpoint.config.get(f"{prefix}.expert_feed_forward_length")
    if not said and name in _known(checkpoint):
        return checkpoint.shape(name)[1]
    return _config.whole({f"{prefix}.expert_feed_forward_length": said}, f"{prefix}.expert_feed_forward_length")


def _known(checkpoint: Checkpoint) -> frozenset[str]:
    if checkpoint not in _NAMES:
        _NAMES[checkpoint] = frozenset(checkpoint.names())
    return _NAMES[checkpoint]


def _part(checkpoint: Checkpoint, name: str, expert: int) -> Tensor:
    """One expert of a stack. Raises ModelError where the stack has fewer."""
    if name in _known(checkpoint) and expert >= checkpoint.shape(name)[0]:
        raise ModelError(
            f"{checkpoint.path}: '{name}' has fewer experts than the config says",
            given=f"{checkpoint.shape(name)[0]} experts, asked for number {expert}",
            try_="the config.json that belongs to the weights",
        )
    return checkpoint.read(name, expert)
