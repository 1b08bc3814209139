"""The settings of a native decoder in a GGUF file, one table for both ways: reading makes a config.json of them,
writing takes them from what the network was built from.

What llama.cpp's graph of an architecture cannot say is refused when it is written, with the setting's name.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lorikeet.base.errors import ModelError
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.gguf_layouts._contract import not_the_same
from lorikeet.models.spec import DecoderSpec
from lorikeet.ops.rope import Rope

# config.json's name -> GGUF's, behind the architecture's
SETTINGS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
YARN = {"beta_fast": 32, "beta_slow": 1}  # what llama.cpp and transformers take where nothing is said


def read_settings(checkpoint: Checkpoint, architecture: str, model_type: str) -> dict[str, Any]:
    """A config.json with what most families' GGUF metadata say alike. Raises ModelError for a missing size."""
    metadata, names = checkpoint.config, set(checkpoint.names())
    prefix = metadata.get("general.architecture")
    said = {name: metadata.get(f"{prefix}.{key}") for name, key in SETTINGS.items()}
    heads, width = said["num_attention_heads"], said["hidden_size"]
    if not isinstance(heads, int) or not isinstance(width, int) or "token_embd.weight" not in names:
        raise ModelError(
            f"{checkpoint.path}: the file's metadata lack the network's sizes",
            given=f"{prefix}.attention.head_count {heads}, {prefix}.embedding_length {width}",
            allowed="a GGUF file of a whole model (no adapter, no vocabulary alone)",
        )
    absent = {"num_key_value_heads": heads, "head_dim": width // heads, "rope_theta": 10000.0}
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": checkpoint.shape("token_embd.weight")[0],
        **{name: absent.get(name) if value is None else value for name, value in said.items()},
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
    }
    scaling = metadata.get(f"{prefix}.rope.scaling.type")
    if scaling in ("linear", "yarn"):
        original = metadata.get(f"{prefix}.rope.scaling.original_context_length")
        config["rope_scaling"] = {
            "rope_type": scaling,
            "factor": metadata.get(f"{prefix}.rope.scaling.factor"),
            **({"original_max_position_embeddings": original} if original else {}),
        }
    return config


def written_settings(spec: DecoderSpec, prefix: str) -> dict[str, Any]:
    """The metadata from which `read_settings` reads this network. Raises ModelError for an odd rope."""
    shape = spec.shape
    values: dict[str, Any] = {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn_width,
        "max_position_embeddings": shape.max_position,
        "rms_norm_eps": float(spec.norm_eps),
        "rope_theta": float(spec.rope.theta),
    }
    more = {
        "attention.value_length": shape.head_dim,
        "rope.dimension_count": spec.rope.rotary_dim,
        "vocab_size": shape.vocab_size,
    }
    said = {SETTINGS[name]: value for name, value in values.items()} | more | _scaling(spec.rope)
    return {f"{prefix}.{key}": value for key, value in said.items()}


def _scaling(rope: Rope) -> dict[str, Any]:
    """rope.scaling.*; llama3 and longrope are tensors, and dynamic acts beyond the context only."""
    if rope.kind not in ("linear", "yarn"):
        return {}
    original = rope.scaling.get("original_max_position_embeddings") or rope.max_position
    factor = float(rope.scaling.get("factor") or rope.max_position / original)  # as ops/rope.py has it
    found: dict[str, Any] = {"rope.scaling.type": rope.kind, "rope.scaling.factor": factor}
    if rope.kind == "yarn":
        odd = {key: rope.scaling[key] for key, usual in YARN.items() if rope.scaling.get(key) not in (None, usual)}
        odd |= {key: rope.scaling[key] for key in ("mscale", "mscale_all_dim") if rope.scaling.get(key)}
        amplitude = rope.scaling.get("attention_factor")
        usual = 0.1 * math.log(factor) + 1
        if odd or rope.scaling.get("truncate") is False or (amplitude and not math.isclose(amplitude, usual)):
            raise not_the_same("yarn with settings of its own", rope.scaling, "factor and the original context")
        found["rope.scaling.original_context_length"] = int(original)
    return found


def rope_factors(rope: Rope) -> dict[str, Tensor]:
    """The tensors with which llama.cpp divides frequencies, where the rope has such."""
    if rope.kind == "llama3":
        plain, _ = Rope(rope.rotary_dim, rope.theta, rope.max_position).frequencies(0)
        scaled, _ = rope.frequencies(0)
        return {"rope_freqs.weight": plain / scaled}
    if rope.kind == "longrope":
        return {
            f"rope_factors_{length}.weight": torch.tensor(rope.scaling[f"{length}_factor"], dtype=torch.float32)
            for length in ("long", "short")
        }
    return {}


def check_plain(spec: DecoderSpec, *, biases: bool = False, activation: str = "silu", kinds: str = "") -> None:
    """Raise ModelError for what an architecture's graph in llama.cpp does not know: biases on linears beyond those it
    has, another activation, a rope of another kind than default, linear, yarn, dynamic and `kinds`."""
    if not biases and (spec.output_bias or spec.mlp_bias):
        raise not_the_same("it has no place for these biases", "biases on o_proj or in the feed-forward", "none")
    if spec.activation != activation:
        raise not_the_same("another activation", spec.activation, activation)
    known = ("default", "linear", "yarn", "dynamic", *kinds.split())
    if spec.rope.kind not in known:
        raise not_the_same(f"rope scaling {spec.rope.kind}", spec.rope.scaling, " ".join(known))


def window_note(spec: DecoderSpec) -> list[str]:
    """What to say of windows that llama.cpp's graph does not have."""
    widths = [width for width in spec.windows if width is not None]
    if not widths or min(widths) >= spec.shape.max_position:
        return []
    return [f"llama.cpp has no attention window for this network: longer texts than {min(widths)} tokens differ"]
