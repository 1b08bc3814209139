"""Tensors with learning rates of their own: by layer, by pattern, by the adapter; all of them factors."""

from __future__ import annotations

import pytest
import torch

from lorikeet.base.errors import RecipeError
from lorikeet.train.optim import OptimOptions, Stepper
from lorikeet.train.rates import RateOptions, factors

NAMES = [f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{part}.weight" for i in range(3) for part in "AB"]
WHOLE = [*NAMES, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


def test_each_layer_has_a_share_of_the_one_above_and_the_embedding_is_below_all() -> None:
    found = factors(RateOptions(layerwise_lr_decay=0.5), WHOLE)
    assert [found[name] for name in NAMES[::2]] == [0.25, 0.5, 1.0]
    assert [found[name] for name in WHOLE[-3:]] == [0.125, 1.0, 1.0]


@pytest.mark.parametrize("name", ["transformer.h.{}.attn.c_attn.weight", "gpt_neox.layers.{}.mlp.dense.weight"])
def test_layers_are_found_in_other_families_names(name: str) -> None:
    found = factors(RateOptions(layerwise_lr_decay=0.1), [name.format(i) for i in (0, 11)])
    assert list(found.values()) == [pytest.approx(1e-11), 1.0]


def test_patterns_the_adapter_and_the_layer_multiply() -> None:
    options = RateOptions(layerwise_lr_decay=0.5, lr_multipliers={"lora_B": 16, r"layers\.0\.": 3})
    found = factors(options, NAMES, {NAMES[1]: 2.0})
    assert found[NAMES[0]] == 0.25 * 3 and found[NAMES[1]] == 2.0 * 0.25 * 16 * 3 and found[NAMES[5]] == 16


def test_a_factor_moves_a_tensor_as_far_as_a_rate_of_its_own_would() -> None:
    start, gradient = torch.linspace(-1, 1, 6), torch.linspace(2, -1, 6)

    def moved(options: OptimOptions, rates: list[float], name: str = "a.weight") -> torch.Tensor:
        parameters = {one: torch.nn.Parameter(start.clone()) for one in ("a.weight", "b.weight")}
        stepper = Stepper(parameters, options)
        for rate in rates:
            for parameter in parameters.values():
                parameter.grad = gradient.clone()
            stepper.step(rate)
        return parameters[name].detach()

    plain, multiplied = OptimOptions(), OptimOptions(lr_multipliers={"^a": 4.0})
    assert torch.equal(moved(multiplied, [0.01, 0.02]), moved(plain, [0.04, 0.08]))
    assert torch.equal(moved(multiplied, [0.01, 0.02], "b.weight"), moved(plain, [0.01, 0.02]))


def test_the_state_is_saved_in_the_order_of_the_parameters_whatever_their_rates() -> None:
    parameters = {name: torch.nn.Parameter(torch.ones(2)) for name in ("a", "b", "c")}
    stepper = Stepper(parameters, OptimOptions(lr_multipliers={"b": 2.0}))
    for parameter in parameters.values():
        parameter.grad = torch.ones(2)
    stepper.step(0.1)
    assert [key.partition("/")[0] for key in stepper.state_dict()][::3] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("multipliers", "message"), [({"lora_[": 2.0}, "is no regex"), ({"lora_A": 0.0}, "above 0"), ({"a": -1}, "above 0")]
)
def test_a_multiplier_that_means_nothing_is_refused(multipliers: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimOptions(lr_multipliers=multipliers)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="no trained tensor's name has 'lora_C'"):
        factors(RateOptions(lr_multipliers={"lora_C": 2.0}), NAMES)


def test_a_decay_by_layer_without_layers_is_refused() -> None:
    with pytest.raises(RecipeError, match="nothing that trains is inside a layer"):
        factors(RateOptions(layerwise_lr_decay=0.9), ["lm_head.weight"])


def test_a_decay_over_one_layer_is_refused() -> None:
    """Layers are counted from the last one that trains, so a lone one learns at the full rate."""
    last = [name for name in NAMES if ".layers.2." in name]
    with pytest.raises(RecipeError, match="no effect, because all that trains in layers is in one"):
        factors(RateOptions(layerwise_lr_decay=0.9), [*last, "model.norm.weight"])
    assert factors(RateOptions(layerwise_lr_decay=0.9), [last[0], "model.embed_tokens.weight"])[last[0]] == 1.0
