"""Full fine-tuning: which tensors train, what is saved, what merging writes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._merge import compare, merged_tensors
from lorikeet.adapters._storage import fill, read_adapter, save_adapter
from lorikeet.adapters.dora import Dora
from lorikeet.adapters.full import Full
from lorikeet.adapters.ia3 import Ia3
from lorikeet.base.errors import RecipeError
from lorikeet.models.build import Build
from lorikeet.models.causal_lm import Shape
from lorikeet.models.experts import ExpertSizes
from lorikeet.models.module import ModuleModel, freeze_linears
from lorikeet.ops.attention import View
from lorikeet.quant.int8 import Int8
from lorikeet.quant.none import NoQuant
from parity import test_step, tiny

PROBES = [[1, 2, 3], [5, 4, 3, 2, 1, 0]]


def moved(seed: int = 0, options: dict[str, Any] | None = None, **network: Any) -> tuple[tiny.Decoder, Full]:
    """A network whose trained tensors are no longer the base's."""
    model, adapter = tiny.decoder(**network), Full(**(options or {}))
    adapter.attach(model, seed=0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / 10)
    return model, adapter


@pytest.mark.parametrize(
    "words, expected",
    [
        ("all", 2 * 9 + 2),
        (["norm"], 1),
        (["input_layernorm", "post_attention_layernorm"], 4),
        (["layers.1"], 9),
        ("q_proj", 2),
        (r"model\.layers\.0\..*_proj\.weight", 7),
        (["embed_tokens", "layers.0.mlp"], 4),
    ],
)
def test_names_choose_tensors(words: str | list[str], expected: int) -> None:
    model, adapter = tiny.decoder(), Full(target_modules=words)
    adapter.attach(model, seed=0)
    assert len(adapter.parameters(model)) == expected
    assert all(parameter.requires_grad for parameter in adapter.parameters(model).values())
    assert sum(parameter.requires_grad for parameter in model.parameters()) == expected


def test_what_is_excluded_stays_frozen() -> None:
    model, adapter = tiny.decoder(), Full(exclude_modules=["layers.0", "embed_tokens"])
    adapter.attach(model, seed=0)
    assert len(adapter.parameters(model)) == 10


@pytest.mark.parametrize("options", [{}, {"target_modules": ["q_proj", "layers.1", "norm"]}, {"target_modules": "all"}])
@pytest.mark.parametrize("tied", [True, False])
def test_saved_filled_and_merged_say_the_same(options: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    model, adapter = moved(options=options, tied=tied, bias=True)
    save_adapter(tmp_path, adapter, model, {"base": "tiny"})
    read, tensors, _ = read_adapter(tmp_path)
    assert read == adapter
    other = tiny.decoder(tied=tied, bias=True)
    read.attach(other, seed=3)
    fill(other, read, tensors, source="test")
    assert compare(model, other, PROBES, 1e-12).max_difference == 0
    merged = tiny.decoder(tied=tied, bias=True)
    written = dict(merged_tensors(model, adapter, torch.float64))
    assert written.keys() == {slot.name for slot in merged.slots()}
    for slot in merged.slots():
        assert slot.write is not None
        slot.write(written[slot.name])
    assert compare(model, merged, PROBES, 1e-12).max_difference == 0
    assert compare(model, tiny.decoder(tied=tied, bias=True), PROBES, 1e-12).max_difference > 1e-3


def test_the_storage_of_linears_that_all_train_is_let_go() -> None:
    model, _ = moved(dtype=torch.bfloat16)
    held = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in model.parameters()}
    assert sum(held.values()) == 4 * sum(one.numel() for one in Full().parameters(model).values())


class Sums(nn.Module):
    """A network of one's own: an embedding, a layer norm with a bias, a linear, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 11, bias=False)

    def forward(self, tokens: Tensor, _positions: Tensor, _view: View) -> Tensor:
        x = self.embed(tokens)
        return x + self.mix(self.norm(x).cumsum(0))


def own(dtype: torch.dtype) -> ModuleModel:
    torch.manual_seed(0)
    module = Sums().to(dtype)
    kept = module.mix.weight.detach().clone(), module.mix.bias.detach().clone()
    freeze_linears(module, Build(NoQuant(), dtype, tiny.CPU), keep="head")
    with torch.no_grad():
        module.mix.linears[0].write(kept[0])
        module.mix.linears[0].bias.copy_(kept[1])
    return ModuleModel(module.requires_grad_(False), Shape(11, 8, 1, 1, 1, 8, 8, 64, {}))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
def test_a_network_of_ones_own_trains_whole(dtype: torch.dtype, tolerance: float) -> None:
    """Its own modules compute in the model's dtype over float32 masters; the reference is torch's autograd."""
    model = own(dtype)
    Full().attach(model, seed=0)
    parameters = Full().parameters(model)
    assert parameters.keys() == {"embed.weight", "norm.weight", "norm.bias", "mix.weight", "mix.bias", "head.weight"}
    rows = test_step.packed([tiny.example([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 1, 1])], share=False)
    loss, gradients = tiny.loss_and_gradients(model, parameters, rows)
    torch.manual_seed(0)
    plain = Sums().to(dtype).float()
    hidden = plain(rows[0].tokens, None, None)
    expected = nn.functional.cross_entropy(plain.head(hidden)[rows[0].predict_at], rows[0].targets)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=tolerance)
    for name, parameter in plain.named_parameters():
        assert parameters[name].dtype == torch.float32
        assert (gradients[name] - parameter.grad).norm() <= tolerance * parameter.grad.norm(), name


def test_quantised_linears_do_not_train_but_what_is_dense_does() -> None:
    def mixed() -> tiny.Decoder:
        plain = tiny.decoder(dtype=torch.float32)
        model = tiny.Decoder(plain.spec, Build(Int8(target_modules=["down_proj"]), torch.float32, tiny.CPU))
        for slot, given in zip(model.slots(), plain.slots()):
            assert slot.write is not None
            slot.write(given.read(torch.float32))
        return model

    with pytest.raises(RecipeError, match="quantised weights do not train") as error:
        Full(target_modules=["down_proj"]).attach(mixed(), seed=0)
    assert "quant=none" in str(error.value)
    adapter, model = Full(target_modules=["q_proj", "norm", "embed_tokens"]), mixed()
    assert (
        adapter.quant_refusal(Int8(target_modules=["down_proj"])) is None and Full().quant_refusal(Int8()) is not None
    )
    adapter.attach(model, seed=0)
    rows = test_step.packed(test_step.some_conversations(), share=True)
    _, gradients = tiny.loss_and_gradients(model, adapter.parameters(model), rows)
    assert len(gradients) == 4 and all(one.any() for one in gradients.values())


@pytest.mark.parametrize(
    "options, said",
    [
        ({"target_modules": ["q_prj"]}, ["no tensor with 'q_prj'", "adapter.target_modules='[q_proj]'"]),
        ({"target_modules": "(q_proj"}, ["not a valid regular expression"]),
        ({"target_modules": ["lm_head"]}, ["no tensor with 'lm_head'"]),
        ({"exclude_modules": ["layer.0"]}, ["adapter.exclude_modules: ", "layer.0"]),
        ({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, ["nothing is left"]),
        ({"target_modules": []}, ["nothing is left"]),
    ],
)
def test_names_that_mean_nothing_are_refused(options: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        Full(**options).attach(tiny.decoder(), seed=0)
    assert all(one in str(error.value) for one in said)


EXPERTS = ExpertSizes(count=5, chosen=2, width=12, normalised=True)


@pytest.mark.parametrize(
    ("options", "stacks"),
    [({}, 6), ({"target_modules": ["up_proj"]}, 2), ({"target_modules": ["layers.1.mlp.experts", "norm"]}, 3)],
)
def test_experts_are_saved_filled_and_merged(options: dict[str, Any], stacks: int, tmp_path: Path) -> None:
    """One parameter for all experts' linears of a name; a tensor of each on disk."""
    model, adapter = moved(options=options, experts=EXPERTS)
    assert sum(one.dim() == 3 for one in adapter.parameters(model).values()) == stacks
    assert sum(".experts." in name for name in adapter.tensors(model)) == 5 * stacks
    save_adapter(tmp_path, adapter, model, {"base": "tiny"})
    read, tensors, _ = read_adapter(tmp_path)
    other = tiny.decoder(experts=EXPERTS)
    read.attach(other, seed=3)
    fill(other, read, tensors, source="test")
    assert compare(model, other, PROBES, 1e-12).max_difference == 0
    merged = tiny.decoder(experts=EXPERTS)
    written = dict(merged_tensors(model, adapter, torch.float64))
    assert written.keys() == {slot.name for slot in merged.slots()}
    for slot in merged.slots():
        assert slot.write is not None
        slot.write(written[slot.name])
    assert compare(model, merged, PROBES, 1e-12).max_difference == 0
    assert compare(model, tiny.decoder(experts=EXPERTS), PROBES, 1e-12).max_difference > 1e-3


def test_what_is_beside_experts_trains_without_them() -> None:
    model, adapter = tiny.decoder(experts=EXPERTS), Full(exclude_modules=["experts"])
    adapter.attach(model, seed=0)
    rows = test_step.packed(test_step.some_conversations(), share=True)
    _, gradients = tiny.loss_and_gradients(model, adapter.parameters(model), rows)
    assert any("gate" in name for name in gradients), "the router trains"
    assert not any(".experts." in name for name in gradients)


def test_some_experts_of_a_layer_are_refused() -> None:
    with pytest.raises(RecipeError, match="train together, and 4 of 5 are left out") as error:
        Full(target_modules=["experts.3"]).attach(tiny.decoder(experts=EXPERTS), seed=0)
    assert "adapter.target_modules='[experts]'" in str(error.value)


def test_quantised_experts_are_refused() -> None:
    model = tiny.Decoder(tiny.decoder(experts=EXPERTS).spec, Build(Int8(), torch.float32, tiny.CPU))
    with pytest.raises(RecipeError, match="quantised weights do not train"):
        Full(target_modules=["experts"]).attach(model, seed=0)


@pytest.mark.parametrize("adapter", [Dora(), Ia3(target_modules=["down_proj"])], ids=lambda one: one.kind)
def test_kinds_without_arithmetic_for_experts_say_what_has_it(adapter: Adapter) -> None:
    with pytest.raises(RecipeError, match="does not train the experts of a mixture") as error:
        adapter.attach(tiny.decoder(experts=EXPERTS), seed=0)
    assert "lora" in str(error.value) and "full" in str(error.value)
