"""How Meta writes a Llama: names, which dimension is split over files, the order inside q and k, and params.json.

Names and order here are as in Hugging Face folders, which hold the rotary halves of each head side by side; Meta's
weights have them interleaved. Source: llama and llama-models of Meta, and transformers' conversion script.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from lorikeet.base.errors import CheckpointError, ModelError

TOP = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
BY_COLUMN = ("o_proj", "down_proj")  # a file has some of its columns; of the others some rows
WHOLE = ("layernorm", "model.norm")  # every file has all of it
DERIVED = re.compile(r"(^|\.)rope\.freqs$")
LLAMA3_VOCABULARY = 128_000
_BACK = {ours: theirs for table in (TOP, LAYER) for theirs, ours in table.items()}
_SIZES = ("dim", "n_layers", "n_heads")


def to_hf(name: str) -> str:
    """`layers.0.attention.wq.weight` -> `model.layers.0.self_attn.q_proj.weight`. Raises KeyError for another name."""
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("layers."):
        _, index, rest = stem.split(".", 2)
        return f"model.layers.{index}.{LAYER[rest]}.{suffix}"
    return f"{TOP[stem]}.{suffix}"


def to_meta(name: str) -> str:
    """The inverse of `to_hf`."""
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, index, rest = stem.split(".", 3)
        return f"layers.{index}.{_BACK[rest]}.{suffix}"
    return f"{_BACK[stem]}.{suffix}"


def split_dimension(name: str, *, vocabulary: bool) -> int | None:
    """Over which dimension files share the tensor that goes by `name` in a Hugging Face folder; None: none.

    `vocabulary`: the embedding is split by its rows, as in Llama 3, not by its columns."""
    stem = name.removesuffix(".weight")
    if stem.endswith(WHOLE):
        return None
    if stem == "model.embed_tokens":
        return 0 if vocabulary else 1
    return 1 if stem.endswith(BY_COLUMN) else 0


def rotary(name: str) -> bool:
    """Whether the rows of the tensor are in another order here and there."""
    return name.endswith((".q_proj.weight", ".k_proj.weight"))


def halves(rows: Tensor, head_dim: int) -> Tensor:
    """Meta's rows of whole heads [heads * E, D] -> [heads, 2, E / 2, D], a view in Hugging Face's order."""
    return rows.view(-1, head_dim // 2, 2, rows.shape[1]).transpose(1, 2)


def pairs(rows: Tensor, head_dim: int) -> Tensor:
    """The inverse, from Hugging Face's rows: [heads, E / 2, 2, D], a view in Meta's order."""
    return rows.view(-1, 2, head_dim // 2, rows.shape[1]).transpose(1, 2)


def check(params: dict[str, Any], where: object) -> None:
    """Raise CheckpointError where params.json is not that of a dense Llama."""
    wrong = [key for key in _SIZES if not (type(params.get(key)) is int and params[key] > 0)]
    eps = params.get("norm_eps")
    if wrong or not (isinstance(eps, float) and eps > 0):
        key = wrong[0] if wrong else "norm_eps"
        raise CheckpointError(f"{where}: no '{key}', or no number", given=params.get(key), allowed="Meta's params.json")
    heads, kv_heads = params["n_heads"], params.get("n_kv_heads") or params["n_heads"]
    if not isinstance(kv_heads, int) or heads % kv_heads or params["dim"] % (2 * heads):
        raise CheckpointError(
            f"{where}: the heads do not fit each other",
            given=f"dim {params['dim']}, n_heads {heads}, n_kv_heads {kv_heads}",
            allowed="key/value heads that divide the heads, and heads of an even width",
        )
    for key in ("moe_args", "moe", "vision_chunk_size", "quantization_args"):
        if params.get(key):
            raise CheckpointError(f"{where}: '{key}' is of a model that is no dense Llama", given=params[key])


def config(params: dict[str, Any], vocab_size: int, ffn_width: int, dtype: torch.dtype, tied: bool) -> dict[str, Any]:
    """config.json for params.json and the sizes that only the tensors tell."""
    llama3 = vocab_size >= LLAMA3_VOCABULARY
    made = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": params["dim"],
        "intermediate_size": ffn_width,
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params.get("n_kv_heads") or params["n_heads"],
        "head_dim": params["dim"] // params["n_heads"],
        "max_position_embeddings": context(params, vocab_size),
        "rms_norm_eps": params["norm_eps"],
        "rope_theta": float(params.get("rope_theta") or 10000.0),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": 128000 if llama3 else 1,
        "eos_token_id": 128001 if llama3 else 2,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if params.get("use_scaled_rope"):
        made["rope_scaling"] = {
            "rope_type": "llama3",
            # Meta's later files state it; of those before, 3.1 divides by 8, and 3.2's small models by 32
            "factor": float(params.get("rope_scaling_factor") or (32.0 if params["dim"] <= 3072 else 8.0)),
            "low_freq_factor": 1.0,
            "high_freq_factor": float(params.get("rope_high_freq_factor") or 4.0),
            "original_max_position_embeddings": 8192,
        }
    return made


def context(params: dict[str, Any], vocab_size: int) -> int:
    """How many tokens the model was made for, which params.json does not say: by what sets the models apart."""
    if isinstance(stated := params.get("max_seq_len"), int):
        return stated
    if params.get("use_scaled_rope"):
        return 131072  # Llama 3.1 and later
    if vocab_size >= LLAMA3_VOCABULARY:
        return 8192  # Llama 3
    if (params.get("rope_theta") or 10000.0) > 10000.0:
        return 16384  # Code Llama
    first = params["norm_eps"] < 5e-6 or (params["dim"] == 8192 and not params.get("n_kv_heads"))
    return 2048 if first else 4096  # LLaMA 1, Llama 2


def ffn_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Meta's formula for the width of the feed-forward."""
    width = int(2 * (4 * dim) / 3)
    width = width if multiplier is None else int(multiplier * width)
    return multiple_of * -(-width // multiple_of)


def params(config: dict[str, Any], where: object) -> dict[str, Any]:
    """params.json for a Llama's config.json. Raises ModelError for what Meta's code cannot compute."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    dim, heads = config["hidden_size"], config["num_attention_heads"]
    odd = {
        "model_type": config.get("model_type") != "llama",
        "rope_scaling": kind not in ("default", "llama3"),
        "head_dim": config.get("head_dim") not in (None, dim // heads),
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "quantization_config": bool(config.get("quantization_config")),
        "hidden_act": config.get("hidden_act", "silu") not in ("silu", "swish"),
    }
    for key, is_odd in odd.items():
        if is_odd:
            raise ModelError(
                f"{where}: Meta's format has no place for this model's '{key}'",
                given=config.get(key),
                allowed="a dense Llama of plain weights, rope unscaled or scaled as in Llama 3",
            )
    made = {"dim": dim, "n_layers": config["num_hidden_layers"], "n_heads": heads}
    made |= {"n_kv_heads": config.get("num_key_value_heads") or heads, "vocab_size": config["vocab_size"]}
    made |= _feed_forward(dim, config["intermediate_size"]) | {"norm_eps": float(config.get("rms_norm_eps", 1e-6))}
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    made["rope_theta"] = float(theta)
    if kind == "llama3":
        made |= {"use_scaled_rope": True, "rope_scaling_factor": float(rope["factor"])}
        made["rope_high_freq_factor"] = float(rope.get("high_freq_factor", 4.0))
    return made


def _feed_forward(dim: int, width: int) -> dict[str, Any]:
    """multiple_of, and a multiplier where it takes one, that give the width by Meta's formula."""
    multiple_of = math.gcd(width, 4096)
    for simple in (multiple_of, 256, 32):
        if ffn_width(dim, simple, None) == width:
            return {"multiple_of": simple}
    multiplier = (width - (multiple_of - 1) / 2 + 0.25) / int(2 * (4 * dim) / 3)  # between two multiples
    assert ffn_width(dim, multiple_of, multiplier) == width
    return {"multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}
