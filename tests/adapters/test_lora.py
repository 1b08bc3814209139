"""LoRA's options: which layers, which factor, what starts where, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lorikeet.adapters.lora import Lora
from lorikeet.base.errors import RecipeError
from lorikeet.models.decoder import Decoder
from parity import tiny


def touched(model: Decoder) -> list[str]:
    return [name for name, linear in model.linears() if linear.adapter is not None]


def hidden(model: Decoder) -> torch.Tensor:
    (states,) = tiny.one_by_one(model, [tiny.example(range(9))])
    return states


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("all-linear", 14),
        (["all-linear"], 14),
        (["q_proj", "v_proj"], 4),
        (["layers.1.mlp.up_proj"], 1),
        (["model.layers.0.self_attn.o_proj", "down_proj"], 3),
        ("q_proj", 2),
        (r".*\.layers\.0\..*", 7),
        (r"model\.layers\.1\.self_attn\.(q|k)_proj", 2),
    ],
)
def test_targets_by_name_by_ending_and_by_regex(target: Any, expected: int) -> None:
    model = tiny.decoder()
    Lora(target_modules=target).attach(model, seed=0)
    assert len(touched(model)) == expected
    tails = target if isinstance(target, list) and target != ["all-linear"] else []
    assert all(name.endswith(tuple(tails)) for name in touched(model) if tails)


@pytest.mark.parametrize(
    ("target", "said"),
    [(["q_prj", "v_proj"], "q_proj"), (["proj"], "q_proj"), ("layers.0", "q_proj"), (["lm_head"], "down_proj")],
)
def test_a_target_that_matches_nothing_is_refused_with_what_there_is(target: Any, said: str) -> None:
    with pytest.raises(RecipeError, match="no linear layer named") as error:
        Lora(target_modules=target).attach(tiny.decoder(), seed=0)
    assert said in str(error.value)


def test_a_broken_regex_is_refused() -> None:
    with pytest.raises(RecipeError, match="not a valid regular expression"):
        Lora(target_modules="(q_proj").attach(tiny.decoder(), seed=0)


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"r": 4}, 2.0),
        ({"r": 4, "lora_alpha": 6}, 1.5),
        ({"r": 4, "lora_alpha": 6, "use_rslora": True}, 3.0),
        ({"r": 9, "use_rslora": True}, 6.0),
        ({"r": 4, "scaling": 0.3}, 0.3),
    ],
)
def test_the_factor(options: dict[str, Any], factor: float) -> None:
    lora = Lora(**options)
    assert lora.factor == pytest.approx(factor)
    written = lora.alpha / (math.sqrt(lora.r) if lora.use_rslora else lora.r)
    assert written == pytest.approx(factor)  # what PEFT will make of adapter_config.json


@pytest.mark.parametrize("options", [{"lora_alpha": 4}, {"use_rslora": True}])
def test_two_ways_to_say_the_factor_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="no effect"):
        Lora(scaling=1.0, **options)


def test_an_adapter_begins_as_no_change_with_a_from_the_seed() -> None:
    model = tiny.decoder()
    before = hidden(model)
    Lora().attach(model, seed=5)
    torch.testing.assert_close(hidden(model), before, rtol=0, atol=0)
    others = [tiny.decoder() for _ in range(2)]
    for other, seed in zip(others, (5, 6)):
        Lora().attach(other, seed=seed)
    first, same, different = (Lora().parameters(one) for one in (model, *others))
    a = [name for name in first if "lora_A" in name]
    assert all(torch.equal(first[name], same[name]) for name in a)
    assert not any(torch.equal(first[name], different[name]) for name in a)
    assert len({first[name].flatten()[0].item() for name in a}) == len(a)  # each layer draws its own
    for name in a:
        bound = 1 / math.sqrt(first[name].shape[1])
        assert 0.7 * bound < first[name].abs().max() <= bound


def test_only_the_adapter_trains_in_float32_beside_a_bfloat16_model() -> None:
    model = tiny.decoder(dtype=torch.bfloat16)
    lora = Lora(r=2)
    lora.attach(model, seed=0)
    trains = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    parameters = lora.parameters(model)
    assert trains == {id(parameter) for parameter in parameters.values()}
    assert all(parameter.dtype == torch.float32 for parameter in parameters.values())
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in parameters


@pytest.mark.parametrize(("bias", "expected"), [("none", 0), ("lora_only", 4), ("all", 14)])
def test_which_biases_train(bias: Any, expected: int) -> None:
    model = tiny.decoder(bias=True)
    lora = Lora(bias=bias, target_modules=["q_proj", "up_proj"])
    lora.attach(model, seed=0)
    assert sum(name.endswith("bias") for name in lora.parameters(model)) == expected
    result = tiny.loss_and_gradients(model, lora.parameters(model), [tiny_batch()])
    assert all(gradient.any() for name, gradient in result[1].items() if "lora_A" not in name)


def tiny_batch() -> Any:
    from lorikeet.data.pack import pack_row

    return pack_row([tiny.example(range(12))])


def test_biases_where_there_are_none_are_refused() -> None:
    with pytest.raises(RecipeError, match="no biases"):
        Lora(bias="all").attach(tiny.decoder(), seed=0)


def test_dropout_is_off_without_gradients() -> None:
    model = tiny.decoder()
    tiny.with_lora(model, lora_dropout=0.5)
    assert not torch.equal(hidden(model), hidden(model))
    with torch.no_grad():
        assert torch.equal(hidden(model), hidden(model))


def settings(**changed: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]} | changed


def test_options_come_back_from_what_was_written() -> None:
    model, lora = tiny.decoder(), Lora(r=3, lora_alpha=5, use_rslora=True, target_modules=r".*layers\.1\..*_proj")
    lora.attach(model, seed=0)
    again = Lora.from_peft(lora.peft_config(model))
    plain = tiny.decoder()
    assert (again.r, again.factor, again.use_rslora) == (3, lora.factor, True)
    assert again.targeted(plain) == lora.targeted(plain)


@pytest.mark.parametrize(
    "changed",
    [
        {"use_dora": True}, {"ensure_weight_tying": True}, {"fan_in_fan_out": True},
        {"alora_invocation_tokens": [1, 2]}, {"use_qalora": True}, {"layer_replication": [[0, 2]]},
        {"init_lora_weights": "pissa_niter_4"}, {"init_lora_weights": "loftq"},
    ],
)  # fmt: skip
def test_what_peft_has_and_we_have_not_is_refused_not_ignored(changed: dict[str, Any]) -> None:
    """PiSSA and its like change the base weights too: their A and B alone are another model."""
    with pytest.raises(RecipeError, match="not supported") as error:
        Lora.from_peft(settings(**changed))
    assert next(iter(changed)) in str(error.value)


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "eva"])
def test_other_beginnings_of_a_and_b_are_no_matter(init: Any) -> None:
    assert Lora.from_peft(settings(init_lora_weights=init)).factor == 2.0
