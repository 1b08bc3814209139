"""Random tiny Llamas written by transformers, read by us, in float32: the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet.base.errors import ModelError
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.models.decoder import Decoder
from lorikeet.models.load import load
from lorikeet.ops.attention import PackedView
from lorikeet.quant.none import NoQuant
from parity import gguf_files, tiny

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
SIZES = {
    "plain": {},
    "odd sizes": {
        "hidden_size": 60,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 20,
        "vocab_size": 71,
    },
    "wide heads, untied": {"head_dim": 24, "tie_word_embeddings": False, "rms_norm_eps": 1e-3},
    "attention biases": {"attention_bias": True, "num_key_value_heads": 4},
    "mlp biases": {"mlp_bias": True, "tie_word_embeddings": False, "intermediate_size": 33},
}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
SCALINGS: dict[str, dict[str, Any]] = {
    "theta": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    "llama3": LLAMA3 | {"rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0},
    "yarn with every setting": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1000.0,
        "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.8, "mscale_all_dim": 0.5, "truncate": False,
    },
    "yarn with rounded bounds": {  # inside the head: 1.4 and 4.0 before rounding
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0,
        "beta_fast": 2.0, "beta_slow": 0.1,
    },
    "yarn with an attention factor": {
        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0,
        "attention_factor": 0.7,
    },
}  # fmt: skip


def llama(seed: int, **options: Any) -> Any:
    """A random model with weights, norms and biases far from their initial values."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        **{
            "vocab_size": 97, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
            "tie_word_embeddings": True, "attn_implementation": "eager",
        } | options
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1 if "norm" in name else 0, 0.15)
    model.tie_weights()
    return model


def ours(path: Path) -> Decoder:
    return load(open_checkpoint(path), NoQuant(), dtype=torch.float32, device=tiny.CPU)


@torch.no_grad()
def logits(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(len(tokens))
    view = PackedView(torch.full((len(tokens),), len(tokens), dtype=torch.int32), positions)
    return model.head.logits(model.hidden(tokens, positions, view))


@torch.no_grad()
def difference(theirs: Any, model: Decoder, length: int = 40, seed: int = 0) -> float:
    """Largest absolute difference of a logit over a random text; the logits are not all alike."""
    tokens = torch.randint(theirs.config.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))
    expected = theirs(tokens[None]).logits[0]
    assert expected.std() > 0.1
    return (logits(model, tokens) - expected).abs().max().item()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("options", SIZES.values(), ids=SIZES.keys())
def test_logits_equal_transformers(options: dict[str, Any], seed: int, tmp_path: Path) -> None:
    theirs = llama(seed, **options)
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")  # several shards
    assert difference(theirs, ours(tmp_path), seed=seed) <= TOLERANCE


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS.keys())
@pytest.mark.parametrize("keys", ["rope_parameters", "rope_scaling"])
def test_rope_scalings_equal_transformers(scaling: dict[str, Any], keys: str, tmp_path: Path) -> None:
    """As transformers 5 writes them, and as its predecessors did: rope_theta and rope_scaling apart."""
    import json

    theirs = llama(5, rope_parameters=dict(scaling))
    theirs.save_pretrained(tmp_path)
    if keys == "rope_scaling":
        file = tmp_path / "config.json"
        config = json.loads(file.read_text())
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = {"type" if name == "rope_type" else name: value for name, value in rope.items()}
        file.write_text(json.dumps(config))
    assert difference(theirs, ours(tmp_path), length=64) <= TOLERANCE
    if scaling["rope_type"] != "default":  # the scaling is really in what was compared
        plain = llama(5, rope_parameters={"rope_type": "default", "rope_theta": scaling["rope_theta"]})
        assert difference(plain, ours(tmp_path), length=64) > 100 * TOLERANCE or scaling["rope_type"] == "dynamic"


def test_dynamic_scaling_beyond_the_trained_length_equals_transformers(tmp_path: Path) -> None:
    theirs = llama(6, rope_parameters=dict(SCALINGS["dynamic"]), max_position_embeddings=32)
    theirs.save_pretrained(tmp_path)
    model = ours(tmp_path)
    for length in (32, 33, 90, 20):
        assert difference(theirs, model, length=length) <= TOLERANCE


@pytest.mark.parametrize(
    "options",
    [
        SIZES["odd sizes"],
        SIZES["wide heads, untied"],
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": SCALINGS["linear"]},
        {"rope_parameters": SCALINGS["yarn"]},
    ],
    ids=["odd", "untied", "biases", "linear", "yarn"],
)
def test_a_gguf_file_gives_the_same_logits(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = llama(7, **options)
    gguf_files.write(tmp_path / "tiny.gguf", theirs)
    assert difference(theirs, ours(tmp_path / "tiny.gguf")) <= TOLERANCE


def test_a_llama3_gguf_file_s_rope_factors_are_llama3_scaling(tmp_path: Path) -> None:
    """Such a file keeps the divisors of the frequencies, not the settings that made them."""
    scaling = LLAMA3 | {"rope_theta": 500000.0, "factor": 32.0, "original_max_position_embeddings": 8192}
    theirs = llama(8, rope_parameters=dict(scaling), max_position_embeddings=16384, head_dim=64)
    plain = llama(8, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, head_dim=64)
    factors = plain.model.rotary_emb.inv_freq / theirs.model.rotary_emb.inv_freq
    assert factors.max() > 31
    gguf_files.write(tmp_path / "tiny.gguf", theirs, {"rope_freqs.weight": factors})
    model = ours(tmp_path / "tiny.gguf")
    assert model.spec.rope.scaling["factor"] == 32
    assert difference(theirs, model, length=3000) <= TOLERANCE
    gguf_files.write(tmp_path / "odd.gguf", theirs, {"rope_freqs.weight": factors.flip(0)})
    with pytest.raises(ModelError, match="rope factors"):
        ours(tmp_path / "odd.gguf")
