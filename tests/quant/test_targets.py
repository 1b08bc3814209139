"""Which linears are quantised: what is chosen, what stays dense, and what is refused before any weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet import config
from lorikeet.base.errors import RecipeError
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.models.build import Build
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.families.qwen2_moe import Qwen2Moe
from lorikeet.models.load import load
from lorikeet.quant._contract import Quant
from lorikeet.quant.int8 import Int8
from lorikeet.quant.nf4 import NF4
from lorikeet.quant.none import DenseWeight

CPU = torch.device("cpu")
MOE = {
    "model_type": "qwen2_moe", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24,
    "rms_norm_eps": 1e-6, "rope_theta": 1e4, "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip


def quantised(model: CausalLM) -> set[str]:
    """The linears that are not dense, without the layer."""
    return {
        linear.name.split(".", 3)[-1]
        for group in model.groups()
        if not isinstance(group.weight, DenseWeight)
        for linear in group.linears
    }


def loaded(folder: Path, quant: Quant) -> CausalLM:
    return load(open_checkpoint(folder), quant, dtype=torch.float32, device=CPU)


ALL = {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}


@pytest.mark.parametrize(
    "targets, expected",
    [
        ("all-linear", ALL),
        (["all-linear"], ALL),
        (["down_proj"], {"mlp.down_proj"}),
        (["q_proj", "k_proj", "v_proj"], {f"self_attn.{name}_proj" for name in "qkv"}),
        ("down_proj", {"mlp.down_proj"}),
        (r".*\.mlp\..*", {f"mlp.{name}_proj" for name in ("gate", "up", "down")}),
    ],
)
def test_what_is_meant_is_quantised_and_the_rest_stays_as_it_is(
    tiny_model: Path, targets: Any, expected: set[str]
) -> None:
    model = loaded(tiny_model, NF4(target_modules=targets))
    assert quantised(model) == expected
    dense = open_checkpoint(tiny_model)
    for name, linear in model.linears():
        same = torch.equal(linear.dense(torch.float32), dense.read(f"{name}.weight"))
        assert same == (name.split(".", 3)[-1] not in expected)
    assert model.head.weight.dtype == torch.float32


def test_one_layer_by_a_regex(tiny_model: Path) -> None:
    model = loaded(tiny_model, Int8(target_modules=r"model\.layers\.1\..*"))
    kept = [isinstance(group.weight, DenseWeight) for group in model.groups()]
    assert kept == [True] * 4 + [False] * 4


def mixture(quant: Quant) -> CausalLM:
    family = Qwen2Moe()
    build = Build(quant, torch.float32, CPU)
    model = family.network(family.spec(MOE), build)
    build.check(model.groups())
    return model


def test_routers_stay_dense_whatever_is_meant() -> None:
    for targets in ("all-linear", ".*", [*sorted(name.rsplit(".")[-1] for name in ALL), "gate_proj"]):
        model = mixture(NF4(target_modules=targets))
        dense = {linear.name for group in model.groups() if group.routes for linear in group.linears}
        assert len(dense) == 2  # the router, and the gate of the expert that all tokens share
        assert len(quantised(model)) == 4 + 4 * 3 + 3


REFUSED: Sequence[tuple[Any, str]] = [
    (["q_prj"], "no linear layer named 'q_prj'"),
    (["down_proj", "w1"], "no linear layer named 'w1'"),
    ("layers.9.*", "no linear layer named"),
    ("(", "not a valid regular expression"),
    (["v_proj"], "kept in one matrix"),
    ("gate_proj", "kept in one matrix"),
    (["lm_head"], "'lm_head' cannot be quantised: embedding, head and norms stay dense"),
    (["down_proj", "lm_head"], "try      quant.target_modules='[down_proj]'"),
    (".*lm_head", "embedding, head and norms stay dense"),
    (["embed_tokens"], "embedding, head and norms stay dense"),
    (["input_layernorm"], "embedding, head and norms stay dense"),
]


@pytest.mark.parametrize("targets, told", REFUSED, ids=str)
def test_what_cannot_be_meant_is_refused(tiny_model: Path, targets: Any, told: str) -> None:
    with pytest.raises(RecipeError, match=r"quant\.target_modules: ") as caught:
        loaded(tiny_model, NF4(target_modules=targets))
    assert told in str(caught.value)


def test_the_router_alone_cannot_be_meant() -> None:
    with pytest.raises(RecipeError, match=r"no linear layer named .mlp\.gate."):
        mixture(NF4(target_modules=["mlp.gate"]))


def test_the_proposal_for_a_part_of_a_matrix_is_taken(tiny_model: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        loaded(tiny_model, NF4(target_modules=["v_proj"]))
    assert caught.value.try_ == "quant.target_modules='[v_proj, q_proj, k_proj]'"
    assert quantised(loaded(tiny_model, NF4(target_modules=["v_proj", "q_proj", "k_proj"])))


@pytest.mark.parametrize(
    "quant, told",
    [
        ({"kind": "nf4", "target_modules": []}, "quant.target_modules"),
        ({"kind": "none", "target_modules": "all-linear"}, "quant.target_modules"),
        ({"kind": "nf4", "block_size": 48}, "quant.block_size"),
        ({"kind": "nf4", "block_size": 8192}, "quant.block_size"),
        ({"kind": "int8", "double_quant": True}, "quant.double_quant"),
        ({"kind": "fp4", "double_quant": "sometimes"}, "quant.double_quant"),
        ({"kind": "int8", "bits": 8}, "quant.bits"),
        ({"kind": "nf5"}, "there is no kind 'nf5'"),
    ],
    ids=str,
)
def test_options_that_are_none_are_refused(quant: dict[str, Any], told: str) -> None:
    values = {"output_dir": "run", "model": {"path": "smollm2-135m"}, "data": {"train": ["a.json"]}, "quant": quant}
    with pytest.raises(RecipeError) as caught:
        config.parse(values)
    assert told in str(caught.value)
