"""DoRA and IA3 in a network: they start as the base, train what they say, come back from disk, and fold in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._merge import compare, merged_tensors
from lorikeet.adapters._storage import fill, read_adapter, save_adapter
from lorikeet.adapters.dora import Dora
from lorikeet.adapters.ia3 import Ia3
from lorikeet.adapters.lora import Lora
from lorikeet.base.errors import RecipeError
from lorikeet.data.pack import pack_row
from lorikeet.models.decoder import Decoder
from lorikeet.models.experts import ExpertSizes
from parity import tiny

PROBES = [[1, 2, 3], [5, 4, 3, 2, 1, 0]]
KINDS: dict[str, Adapter] = {
    "dora": Dora(r=3),
    "dora, some": Dora(r=2, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"], rank_pattern={"v_proj": 4}),
    "dora, biases": Dora(r=2, target_modules=["k_proj", "o_proj"], bias="all"),
    "ia3": Ia3(),
    "ia3, inputs of one in a group": Ia3(target_modules=["k_proj", "up_proj"], feedforward_modules=["up_proj"]),
    "ia3, all inputs": Ia3(target_modules="all-linear", feedforward_modules="all-linear"),
}  # fmt: skip
BOTH = pytest.mark.parametrize("adapter", KINDS.values(), ids=KINDS.keys())


def attached(adapter: Adapter, *, seed: int = 0, random: bool = True, **network: Any) -> Decoder:
    model = tiny.decoder(**{"bias": True, **network})
    adapter.attach(model, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in adapter.parameters(model).values() if random else ():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.3)
    return model


@BOTH
def test_it_starts_as_the_base(adapter: Adapter) -> None:
    # members that scale their inputs are multiplied one by one, which some processors' libraries round otherwise
    for dtype, rounding in ((torch.float64, 1e-13), (torch.bfloat16, 2**-7)):
        model = attached(adapter, random=False, dtype=dtype)
        assert compare(model, tiny.decoder(bias=True, dtype=dtype), PROBES, 0).max_difference <= rounding
        parameters = adapter.parameters(model)
        assert {id(one) for one in model.parameters() if one.requires_grad} == {id(one) for one in parameters.values()}
        assert all(one.dtype == torch.promote_types(dtype, torch.float32) for one in parameters.values())


@BOTH
def test_every_gradient_is_there_and_the_same_when_layers_are_computed_twice(adapter: Adapter) -> None:
    batch = pack_row([tiny.example(range(12)), tiny.example(range(5, 14))])
    model = attached(adapter)
    once = tiny.loss_and_gradients(model, adapter.parameters(model), [batch])
    twice = tiny.loss_and_gradients(model, adapter.parameters(model), [batch], checkpointing=True)
    tiny.assert_same(once, twice)


@BOTH
def test_what_is_saved_comes_back(adapter: Adapter, tmp_path: Path) -> None:
    model = attached(adapter)
    save_adapter(tmp_path, adapter, model, {"base": "tiny"})
    again, tensors, _ = read_adapter(tmp_path)
    assert type(again) is type(adapter)
    other = tiny.decoder(bias=True)
    again.attach(other, seed=8)
    fill(other, again, tensors, source="test")
    assert compare(model, other, PROBES, 0).max_difference == 0


@BOTH
def test_merged_equals_base_and_adapter(adapter: Adapter) -> None:
    model, merged = attached(adapter, tied=False), tiny.decoder(bias=True, tied=False)
    found = dict(merged_tensors(model, adapter, torch.float64))
    for slot in merged.slots():
        slot.write(found[slot.name])
    assert compare(model, merged, PROBES, 0).max_difference < 1e-11
    assert compare(model, tiny.decoder(bias=True, tied=False), PROBES, 0).max_difference > 0.01


def test_lengths_kept_for_answers_follow_the_parameters() -> None:
    adapter = Dora(r=2)
    model = attached(adapter)
    first = compare(model, attached(adapter), PROBES, 0)
    assert first.max_difference == 0
    for name, parameter in adapter.parameters(model).items():
        if "lora_B" in name:
            parameter.data.mul_(2.0)  # .data leaves no trace in the version, as a kernel of ours may not
    tiny.loss_and_gradients(model, adapter.parameters(model), [pack_row([tiny.example(range(12))])])
    other = attached(adapter)
    with torch.no_grad():
        for name, parameter in adapter.parameters(other).items():
            if "lora_B" in name:
                parameter.mul_(2.0)
    assert compare(model, other, PROBES, 0).max_difference == 0


@pytest.mark.parametrize("adapter", [Dora(), Ia3(target_modules=["up_proj"], feedforward_modules=[])])
def test_experts_are_refused(adapter: Adapter) -> None:
    model = tiny.decoder(experts=ExpertSizes(count=2, chosen=1, width=12, normalised=True))
    with pytest.raises(RecipeError, match="does not train the experts"):
        adapter.attach(model, seed=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"feedforward_modules": ["gate_proj"]}, "none of them is among the targeted"),
        ({"feedforward_modules": ["downproj"]}, "no linear layer named 'downproj'"),
        ({"target_modules": []}, "nothing would train"),
        ({"target_modules": ["c_attn"]}, "no linear layer named 'c_attn'"),
    ],
)
def test_ia3_refuses_what_is_not_there(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match="adapter\\.") as error:
        Ia3(**options).attach(tiny.decoder(), seed=0)
    assert said in str(error.value)


@pytest.mark.parametrize("setting", ["trainable_token_indices", "fan_in_fan_out"])
def test_ia3_refuses_what_it_cannot_read(setting: str) -> None:
    with pytest.raises(RecipeError, match=setting):
        Ia3.from_peft({"peft_type": "IA3", "target_modules": ["k_proj"], setting: ["x"]})


def test_which_parameters_learn_faster() -> None:
    """As PEFT's LoRA+: B, and whatever has one dimension."""
    for adapter in (Lora(loraplus_lr_ratio=16, bias="all"), Dora(loraplus_lr_ratio=16)):
        model = attached(adapter)
        found = adapter.learning_rate_factors(model)
        assert set(found.values()) == {16}
        slower = {name for name in adapter.parameters(model) if name not in found}
        assert slower and all(name.endswith("lora_A.weight") for name in slower)
    assert Lora().learning_rate_factors(attached(Lora())) == {}
