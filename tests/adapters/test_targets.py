"""Which linears an adapter is put on: layers, exclusions, ranks and factors by name, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lorikeet.adapters._targets import by_leaf_or_name, leaves_or_names
from lorikeet.adapters.lora import Lora
from lorikeet.base.errors import RecipeError
from lorikeet.models.experts import ExpertSizes
from parity import tiny


def touched(model: Any, **options: Any) -> dict[str, int]:
    """The rank of each linear that has an update."""
    Lora(**options).attach(model, seed=0)
    return {name: len(linear.adapter.a) for name, linear in model.linears() if linear.adapter is not None}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layers_to_transform": 1}, 7),
        ({"layers_to_transform": [0, 2]}, 14),
        ({"layers_to_transform": [2], "target_modules": ["q_proj"]}, 1),
        ({"layers_to_transform": [0], "layers_pattern": "layers"}, 7),
        ({"layers_to_transform": [0], "layers_pattern": ["h", "layers"]}, 7),
        ({"exclude_modules": ["down_proj"]}, 18),
        ({"exclude_modules": r".*\.mlp\..*"}, 12),
        ({"exclude_modules": "layers.1.mlp.up_proj"}, 20),
        ({"exclude_modules": ["q_proj"], "layers_to_transform": [1]}, 6),
    ],
)
def test_layers_and_exclusions(options: dict[str, Any], expected: int) -> None:
    found = touched(tiny.decoder(layers=3), r=1, **options)
    assert len(found) == expected
    if "layers_to_transform" in options and options["layers_to_transform"] != [0, 2]:
        assert len({name.split(".")[2] for name in found}) == 1


def test_of_experts_the_layer_counts_and_not_the_expert() -> None:
    model = tiny.decoder(layers=3, experts=ExpertSizes(count=2, chosen=1, width=12, normalised=True))
    found = touched(model, r=1, layers_to_transform=[2], target_modules=["up_proj"])
    assert set(found) == {f"model.layers.2.mlp.experts.{expert}.up_proj" for expert in (0, 1)}


def test_ranks_by_pattern_the_first_that_matches() -> None:
    found = touched(tiny.decoder(), r=3, rank_pattern={"layers.0.self_attn.q_proj": 1, "q_proj": 2, ".*mlp.*": 4})
    assert found["model.layers.0.self_attn.q_proj"] == 1 and found["model.layers.1.self_attn.q_proj"] == 2
    assert found["model.layers.1.mlp.up_proj"] == 4 and found["model.layers.1.self_attn.k_proj"] == 3


def test_the_factor_of_a_pattern_is_peft_s() -> None:
    lora = Lora(r=4, lora_alpha=8, rank_pattern={"q_proj": 2}, alpha_pattern={"k_proj": 2})
    assert [lora.factor_of(f"model.layers.0.self_attn.{end}") for end in ("q_proj", "k_proj", "v_proj")] == [4, 0.5, 2]
    assert Lora(r=4, scaling=0.3, rank_pattern={"q_proj": 2}).factor_of("x.q_proj") == 0.3


def test_an_end_of_names_matches_whole_words_only() -> None:
    with pytest.raises(RecipeError, match="names no linear that trains"):
        touched(tiny.decoder(), rank_pattern={"roj": 2})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers_to_transform": [0, 7]}, "there is no layer 7"),
        ({"layers_to_transform": [0], "layers_pattern": "blocks"}, "no name has such a number"),
        ({"exclude_modules": ["q_prj"]}, "no linear layer named 'q_prj'"),
        ({"exclude_modules": "(q_proj"}, "not a valid regular expression"),
        ({"exclude_modules": ["q_proj"], "target_modules": ["q_proj"]}, "leaves nothing to train"),
        ({"exclude_modules": "all-linear"}, "leaves nothing to train"),
        ({"rank_pattern": {"q_proj": 2}, "target_modules": ["k_proj"]}, "names no linear that trains"),
        ({"alpha_pattern": {"q_prj": 2}}, "names no linear that trains"),
    ],
)
def test_what_the_model_has_not_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match="adapter\\.") as error:
        touched(tiny.decoder(), **options)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers_pattern": "layers"}, "no effect without layers_to_transform"),
        ({"layers_to_transform": []}, "empty list"),
        ({"layers_to_transform": [0], "target_modules": ".*q_proj"}, "no effect beside a regex"),
        ({"rank_pattern": {"(q": 2}}, "not a valid regular expression"),
        ({"rank_pattern": {"q_proj": 0}}, "not above 0"),
        ({"alpha_pattern": {"q_proj": -1.0}}, "not above 0"),
        ({"scaling": 1.0, "alpha_pattern": {"q_proj": 1.0}}, "no effect"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        Lora(**options)
    assert said in str(error.value)


def test_experts_of_a_layer_have_one_rank() -> None:
    model = tiny.decoder(experts=ExpertSizes(count=2, chosen=1, width=12, normalised=True))
    with pytest.raises(RecipeError, match="one rank and one factor"):
        touched(model, rank_pattern={r"experts\.1\.up_proj": 2})
    found = touched(tiny.decoder(experts=ExpertSizes(2, 1, 12, True)), r=3, rank_pattern={"up_proj": 2})
    assert {rank for name, rank in found.items() if name.endswith("up_proj")} == {2}


def test_names_are_written_as_short_as_they_can_be() -> None:
    model = tiny.decoder()
    every = {name for name, _ in model.linears()}
    one = {name for name in every if "layers.1" in name}
    assert leaves_or_names({name for name in every if name.endswith(("k_proj", "up_proj"))}, model) == [
        "k_proj",
        "up_proj",
    ]
    assert leaves_or_names(one, model) == sorted(one)
    assert by_leaf_or_name({"a.0.x": 1, "a.1.x": 1, "a.0.y": 2, "a.1.y": 3, "a.0.z": 9}, 9) == {
        "x": 1,
        "a.0.y": 2,
        "a.1.y": 3,
    }
