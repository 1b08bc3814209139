"""What a GGUF file cannot say of a network is refused, and what llama.cpp leaves out is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorikeet.base.errors import ModelError
from lorikeet.models.causal_lm import Shape
from lorikeet.models.families.gemma2 import Gemma2
from lorikeet.models.families.phi3 import Phi3
from lorikeet.models.families.qwen2_moe import Qwen2Moe
from lorikeet.models.families.qwen3 import Qwen3
from lorikeet.models.gguf_layouts._contract import GGUFLayout
from lorikeet.models.gguf_layouts.bloom import Bloom
from lorikeet.models.gguf_layouts.gpt2 import GPT2
from lorikeet.models.gguf_layouts.gpt_neox import GPTNeoX
from lorikeet.models.spec import Spec

SIZES = {
    "vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "max_position_embeddings": 256,
}  # fmt: skip


def spec_of(config: dict[str, Any]) -> Spec:
    return Spec(Shape(97, 64, 2, 4, 4, 16, 256, 256, config))


REFUSED: dict[str, tuple[GGUFLayout, dict[str, Any]]] = {
    "gpt2, another activation": (GPT2(), {"activation_function": "relu"}),
    "gpt_neox, another activation": (GPTNeoX(), {"hidden_act": "relu", "intermediate_size": 256}),
    "gpt_neox, no biases": (GPTNeoX(), {"attention_bias": False, "intermediate_size": 256}),
    "gpt_neox, tied": (GPTNeoX(), {"tie_word_embeddings": True, "intermediate_size": 256}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_networks_of_transformers_that_llama_cpp_computes_otherwise(case: str) -> None:
    layout, config = REFUSED[case]
    with pytest.raises(ModelError, match=r"llama\.cpp computes this network otherwise"):
        layout.gguf_metadata(spec_of(config))


@pytest.mark.parametrize("name", ["gelu", "gelu_fast", "gelu_new"])  # GPT-NeoX-20B says gelu_fast
def test_every_gelu_is_llama_cpp_s(name: str) -> None:
    GPT2().gguf_metadata(spec_of({"activation_function": name}))
    GPTNeoX().gguf_metadata(spec_of({"hidden_act": name, "max_position_embeddings": 64, "intermediate_size": 256}))


@pytest.mark.parametrize("changes", [{"sliding_window": None}, {"layer_types": ["full_attention"] * 2}])
def test_gemma_2_without_windows_is_refused(changes: dict[str, Any]) -> None:
    """llama.cpp has them whatever the file says."""
    family, config = Gemma2(), SIZES | {"head_dim": 16, "query_pre_attn_scalar": 16} | changes
    with pytest.raises(ModelError, match="every other layer has the window"):
        family.gguf_metadata(family.spec(config))


def test_experts_with_a_tied_head_are_refused_where_llama_cpp_wants_one() -> None:
    family = Qwen2Moe()
    with pytest.raises(ModelError, match="the head is a tensor of its own"):
        family.gguf_metadata(family.spec(SIZES | {"tie_word_embeddings": True}))


@pytest.mark.parametrize("window, notes", [(None, 0), (2047, 1), (4096, 0)])
def test_phi_3_s_window_is_switched_off_there_and_that_is_said(window: int | None, notes: int) -> None:
    family = Phi3()
    spec = family.spec(SIZES | {"max_position_embeddings": 4096, "sliding_window": window})
    found = family.gguf_notes(spec)
    assert len(found) == notes and all("2047" in note for note in found)


def test_yarn_s_factor_may_follow_from_the_two_lengths() -> None:
    yarn = {"rope_type": "yarn", "original_max_position_embeddings": 64}
    family = Qwen3()
    found = family.gguf_metadata(family.spec(SIZES | {"head_dim": 16, "rope_scaling": yarn}))
    assert found["qwen3.rope.scaling.factor"] == 4.0
    assert found["qwen3.rope.scaling.original_context_length"] == 64


@pytest.mark.parametrize("layout, attention", [(Bloom(), "h.0.self_attention"), (GPTNeoX(), "layers.0.attention")])
def test_q_k_and_v_of_a_head_are_taken_apart(layout: GGUFLayout, attention: str) -> None:
    name = f"{layout.gguf_inside}{attention}.query_key_value.weight"
    rows = torch.arange(4 * 3 * 2)[:, None]  # 4 heads, q k and v, 2 rows each
    assert layout.gguf_name(name) == "blk.0.attn_qkv.weight"
    found = layout.to_gguf(name, rows, spec_of({})).flatten().tolist()
    assert found[:8] == [0, 1, 6, 7, 12, 13, 18, 19] and found[8:10] == [2, 3]
