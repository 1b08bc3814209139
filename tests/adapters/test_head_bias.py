"""Biases, norms, the head: what trains, what merging writes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet.adapters._merge import compare, merged_tensors
from lorikeet.adapters._own_tensors import OwnTensors
from lorikeet.adapters._storage import fill, read_adapter, save_adapter
from lorikeet.adapters.bias import Bias
from lorikeet.adapters.head import TrainedHead
from lorikeet.api.merging import merge
from lorikeet.base.errors import RecipeError
from lorikeet.base.yaml_lines import dump
from lorikeet.cli.main import run_command
from lorikeet.models.build import Build
from lorikeet.quant.nf4 import NF4
from parity import test_step, tiny

from .test_full import PROBES, Sums, own


def gradients(model: tiny.Decoder, adapter: OwnTensors) -> dict[str, torch.Tensor]:
    adapter.attach(model, seed=0)
    rows = test_step.packed(test_step.some_conversations(), share=True)
    return tiny.loss_and_gradients(model, adapter.parameters(model), rows)[1]


@pytest.mark.parametrize("norms", [False, True])
def test_biases_and_norms_have_the_gradients_of_full_tuning(norms: bool) -> None:
    from lorikeet.adapters.full import Full

    found = gradients(tiny.decoder(bias=True), Bias(norms=norms))
    whole = gradients(tiny.decoder(bias=True), Full())
    assert found.keys() == {name for name in whole if name.endswith(".bias") or (norms and "norm" in name)}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-9, atol=1e-12)


def test_biases_train_over_quantised_weights() -> None:
    plain = tiny.decoder(bias=True, dtype=torch.float32, width=64, head_dim=16)
    model = tiny.Decoder(plain.spec, Build(NF4(), torch.float32, tiny.CPU))
    for slot, given in zip(model.slots(), plain.slots()):
        assert slot.write is not None
        slot.write(given.read(torch.float32))
    assert all(one.any() for one in gradients(model, Bias()).values())


def test_a_model_without_biases_is_refused() -> None:
    with pytest.raises(RecipeError, match="no biases") as error:
        Bias().attach(tiny.decoder(), seed=0)
    assert "adapter.norms=true" in str(error.value)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("embeddings", [True, False])
def test_head_and_embedding_have_the_gradients_of_full_tuning(tied: bool, embeddings: bool) -> None:
    """An untied copy of a tied head has the part of the gradient that comes through the head."""
    from lorikeet.adapters.full import Full

    found = gradients(tiny.decoder(tied=tied), TrainedHead(embeddings=embeddings))
    whole = gradients(tiny.decoder(tied=tied), Full())
    if tied and not embeddings:
        assert found.keys() == {"lm_head.weight"}
        model = tiny.decoder(tied=False)
        with torch.no_grad():
            for slot, given in zip(model.slots(), tiny.decoder().slots()):
                assert slot.write is not None
                slot.write(given.read(torch.float64))
            model.head.weight.copy_(model.embedding.weight)
        whole = gradients(model, Full())
    assert set(found) <= set(whole) and ("model.embed_tokens.weight" in found) == embeddings
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-9, atol=1e-12)


def test_a_tied_head_is_untied_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.decoder()
    TrainedHead().attach(model, seed=0)
    assert "tied to the embedding" in capsys.readouterr().err
    assert model.head.weight is not model.embedding.weight
    assert model.head.weight.requires_grad and not model.embedding.weight.requires_grad


@pytest.mark.parametrize("adapter", [Bias(norms=True), TrainedHead(), TrainedHead(embeddings=True)], ids=repr)
@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_filled_say_the_same(adapter: OwnTensors, tied: bool, tmp_path: Path) -> None:
    model, other = (tiny.decoder(tied=tied, bias=True) for _ in range(2))
    adapter.attach(model, seed=0)
    with torch.no_grad():
        for parameter in adapter.parameters(model).values():
            parameter.mul_(1.5)
    save_adapter(tmp_path, adapter, model, {"base": "tiny"})
    read, tensors, _ = read_adapter(tmp_path)
    assert read == adapter
    read.attach(other, seed=3)
    fill(other, read, tensors, source="test")
    assert compare(model, other, PROBES, 1e-12).max_difference == 0
    names = {slot.name for slot in tiny.decoder(tied=tied, bias=True).slots()}
    untied = tied and read == TrainedHead()
    assert set(dict(merged_tensors(model, adapter, torch.float64))) == names | ({"lm_head.weight"} if untied else set())


def trained(make_model: Callable[..., Path], data: Path, folder: Path, adapter: dict[str, Any]) -> Path:
    """A short run over a tied model."""
    recipe = {
        "output_dir": str(folder / "run"),
        "model": {"path": str(make_model(folder / "model", tie_word_embeddings=True)), "dtype": "float32"},
        "adapter": adapter,
        "data": {"train": [str(data)], "max_length": 128},
        "train": {"max_steps": 2, "learning_rate": 0.01},
    }
    (folder / "recipe.yaml").write_text(dump(recipe))
    assert run_command(["train", str(folder / "recipe.yaml")]) == 0
    return folder / "run"


def test_a_merged_head_of_its_own_is_untied_for_transformers_too(
    make_model: Callable[..., Path], tiny_data: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    run = trained(make_model, tiny_data, tmp_path, {"kind": "head"})
    merge(run, tmp_path / "merged")  # which compares it with base + adapter
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.config.tie_word_embeddings is False
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_tensors_of_the_base_are_not_kept_beside_it(
    make_model: Callable[..., Path], tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(make_model, tiny_data, tmp_path, {"kind": "head", "embeddings": True})
    assert run_command(["merge", str(run), str(tmp_path / "merged"), "--keep-adapter"]) == 2
    assert "no place beside it" in capsys.readouterr().err and not (tmp_path / "merged").exists()


def test_a_network_of_ones_own_with_a_tied_head_keeps_it_tied() -> None:
    model = own(torch.float32)
    module = model.module
    assert isinstance(module, Sums)
    module.head.weight = model.head.weight = module.embed.weight
    with pytest.raises(RecipeError, match="cannot have one of its own") as error:
        TrainedHead().attach(model, seed=0)
    assert "adapter.embeddings=true" in str(error.value)
    TrainedHead(embeddings=True).attach(model, seed=0)
    assert TrainedHead(embeddings=True).parameters(model).keys() == {"embed.weight"}
    assert module.embed.weight is module.head.weight is model.head.weight
