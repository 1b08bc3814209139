"""How A and B start: the start is the base, PiSSA's too; what is saved is a difference to the untouched base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lorikeet.adapters._merge import compare, merged_tensors
from lorikeet.adapters._storage import fill, read_adapter, read_training, save_adapter
from lorikeet.adapters.dora import Dora
from lorikeet.adapters.lora import Lora
from lorikeet.base.errors import RecipeError
from lorikeet.data.pack import pack_row
from lorikeet.models.decoder import Decoder
from lorikeet.models.experts import ExpertSizes
from parity import tiny

PROBES = [[1, 2, 3], [5, 4, 3, 2, 1, 0]]
STARTS = ["gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora"]
SPLIT = STARTS[2:]


def moved(lora: Lora, model: Decoder, seed: int = 1) -> Decoder:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora.parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.2)
    return model


def attached(how: Any, seed: int = 0, **options: Any) -> tuple[Lora, Decoder]:
    lora, model = Lora(**{"r": 4} | options, init_lora_weights=how), tiny.decoder()
    lora.attach(model, seed=seed)
    return lora, model


@pytest.mark.parametrize("how", STARTS)
def test_the_start_is_the_base_and_a_and_b_train(how: str) -> None:
    lora, model = attached(how)
    assert compare(model, tiny.decoder(), PROBES, 0).max_difference < 1e-12
    parameters = lora.parameters(model)
    b = parameters["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    assert b.any() == (how != "gaussian")
    _, gradients = tiny.loss_and_gradients(model, parameters, [pack_row([tiny.example(range(12))])])
    assert all(gradient.any() for name, gradient in gradients.items() if b.any() or "lora_B" in name)
    assert {id(one) for one in model.parameters() if one.requires_grad} == {id(one) for one in parameters.values()}


def test_pissa_takes_the_largest_singular_values() -> None:
    lora, model = attached("pissa", lora_alpha=6)
    linear = dict(model.linears())["model.layers.0.mlp.up_proj"]
    rest = linear.dense(torch.float64) - lora.factor * linear.adapter.b.detach() @ linear.adapter.a.detach()
    kept = torch.linalg.svdvals(linear.dense(torch.float64))[4:]
    torch.testing.assert_close(torch.linalg.svdvals(rest)[: len(kept)], kept)
    a, b = linear.adapter.a, linear.adapter.b
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))  # the roots of the singular values on both sides


def test_in_bfloat16_the_start_is_the_base_to_rounding() -> None:
    model, base = (tiny.decoder(dtype=torch.bfloat16) for _ in range(2))
    Lora(r=4, init_lora_weights="pissa").attach(model, seed=0)
    plain = tiny.decoder(dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(1 + 2**-8)  # one step of rounding on every weight
    rounding = compare(plain, base, PROBES, 0).max_difference
    assert compare(model, base, PROBES, 0).max_difference <= rounding


@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "lora_alpha": 3}, {"rank_pattern": {"q_proj": 2}}])
@pytest.mark.parametrize("how", SPLIT)
def test_the_saved_difference_on_the_untouched_base_is_the_trained_model(
    how: str, options: dict[str, Any], tmp_path: Path
) -> None:
    lora, model = attached(how, **options)
    moved(lora, model)
    save_adapter(tmp_path, lora, model, {"base": "tiny"})
    again, tensors, _ = read_adapter(tmp_path)
    other = tiny.decoder()
    again.attach(other, seed=3)
    fill(other, again, tensors, source="test")
    assert again.init_lora_weights is True and again.r == 8
    assert again.rank_of("model.layers.0.self_attn.q_proj") == 2 * lora.rank_of("model.layers.0.self_attn.q_proj")
    assert compare(model, other, PROBES, 0).max_difference < 1e-12
    assert compare(model, tiny.decoder(), PROBES, 0).max_difference > 0.1


def test_merged_equals_base_and_adapter() -> None:
    lora, model = attached("pissa")
    merged = tiny.decoder()
    found = dict(merged_tensors(moved(lora, model), lora, torch.float64))
    for slot in merged.slots():
        slot.write(found[slot.name])
    assert compare(model, merged, PROBES, 0).max_difference < 1e-12


def test_a_checkpoint_holds_both_sides_whatever_a_new_decomposition_says(tmp_path: Path) -> None:
    lora, model = attached("pissa_niter_4", seed=0)
    moved(lora, model)
    save_adapter(tmp_path, lora, model, {}, final=False)
    _, other = attached("pissa_niter_4", seed=77)
    fill(other, lora, read_training(tmp_path), source="test")
    for left, right in zip(lora.parameters(model).values(), lora.parameters(other).values()):
        assert torch.equal(left, right)
    for left, right in zip(lora.tensors(model).values(), lora.tensors(other).values()):
        assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("kind", "how", "said"),
    [
        (Lora, "pisa", "there is no start 'pisa'"),
        (Lora, "pissa_niter_0", "there is no start"),
        (Lora, False, "there is no start"),
        (Dora, "pissa", "from the whole weight"),
    ],
)
def test_starts_that_are_none_are_refused(kind: Any, how: Any, said: str) -> None:
    with pytest.raises(ValidationError) as error:
        kind(init_lora_weights=how)
    assert said in str(error.value)


@pytest.mark.parametrize(("how", "rank", "said"), [("orthogonal", 3, "even"), ("pissa", 17, "no 17 directions")])
def test_ranks_that_a_start_has_not_are_refused(how: str, rank: int, said: str) -> None:
    with pytest.raises(RecipeError, match=r"adapter\.r: ") as error:
        attached(how, r=rank)
    assert said in str(error.value)


def test_experts_start_in_the_usual_way_only() -> None:
    model = tiny.decoder(experts=ExpertSizes(count=2, chosen=1, width=12, normalised=True))
    with pytest.raises(RecipeError, match="init_lora_weights=pissa does not train the experts"):
        Lora(r=2, init_lora_weights="pissa").attach(model, seed=0)
