"""Reading what most families' config.json say alike: sizes, rope, windows, activation."""

from __future__ import annotations

from typing import Any

from lorikeet.base.errors import ModelError
from lorikeet.models.causal_lm import Shape
from lorikeet.ops.rope import Rope
from lorikeet.ops.swiglu import Activation

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
}


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


def number(config: dict[str, Any], key: str, default: float | None = None) -> float | None:
    """The number > 0 at `key`; `default` where it is absent or null. Raises ModelError for something else."""
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ModelError(f"config.json: '{key}' is no number above 0", given=repr(value))
    return float(value)


def activation(config: dict[str, Any], default: str = "silu", key: str = "hidden_act") -> Activation:
    """The feed-forward's activation. Raises ModelError for one that is not known here."""
    name = config.get(key) or default
    if name not in ACTIVATIONS:
        raise ModelError(
            f"config.json: an activation that is not known here, '{key}'",
            given=repr(name),
            allowed=" ".join(ACTIVATIONS),
        )
    return ACTIVATIONS[name]


def sizes(config: dict[str, Any], *, max_position: int = 2048, head_dim: int | None = None) -> Shape:
    """The sizes, from the keys that Llama and its relatives use. Defaults are for keys that old configs leave out."""
    heads, width = whole(config, "num_attention_heads"), whole(config, "hidden_size")
    kv_heads = whole(config, "num_key_value_heads", heads)
    head_dim = whole(config, "head_dim", head_dim or width // heads)
    if heads % kv_heads or head_dim % 2:
        raise ModelError(
            "config.json: the heads do not fit each other",
            given=f"num_attention_heads {heads}, num_key_value_heads {kv_heads}, head_dim {head_dim}",
            allowed="key/value heads that divide the heads, and an even head_dim",
            try_="the config.json that belongs to the weights",
        )
    return Shape(
        vocab_size=whole(config, "vocab_size"),
        width=width,
        layers=whole(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_width=whole(config, "intermediate_size"),
        max_position=whole(config, "max_position_embeddings", max_position),
        config=config,
    )


def rope(config: dict[str, Any], shape: Shape, *, theta: float = 10000.0) -> Rope:
    """The rotary embedding; transformers 5 writes rope_parameters, before, rope_theta and rope_scaling stood apart."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise ModelError("config.json: the rope settings are no mapping", given=repr(found)[:120])
    return rope_from(found, config, shape, theta=theta)


def rope_from(found: dict[str, Any], config: dict[str, Any], shape: Shape, *, theta: float) -> Rope:
    """As `rope`, from the mapping `found` itself."""
    settings = dict(found)
    part = float(settings.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0)
    base = number(settings, "rope_theta") or number(config, "rope_theta") or theta
    settings.pop("rope_theta", None)
    outside = config.get("original_max_position_embeddings")  # Phi-3 says it beside the rope settings
    if outside and (settings.get("rope_type") or settings.get("type") or "default") != "default":
        settings["original_max_position_embeddings"] = outside
    return Rope(int(shape.head_dim * part), base, shape.max_position, settings)


def windows(config: dict[str, Any], layers: int, *, pattern: list[str] | None = None) -> tuple[int | None, ...]:
    """Per layer, how far it sees: from `layer_types`, else `pattern`, else every layer has the window."""
    window = config.get("sliding_window")
    if window is None:
        return ()
    width = whole(config, "sliding_window")
    types = config.get("layer_types") or pattern or ["sliding_attention"] * layers
    known = {"sliding_attention": width, "full_attention": None}
    if len(types) < layers or any(kind not in known for kind in types):
        raise ModelError(
            "config.json: 'layer_types' does not say what each layer sees",
            given=f"{len(types)} of {layers}: {' '.join(dict.fromkeys(map(str, types)))}",
            allowed=" ".join(known),
        )
    return tuple(known[kind] for kind in types[:layers])


def tied(config: dict[str, Any], default: bool) -> bool:
    """Whether the head is the embedding. Families differ in what an absent key means."""
    value = config.get("tie_word_embeddings")
    return default if value is None else bool(value)
