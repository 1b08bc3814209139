"""modules_to_save: what trains whole beside an adapter, over quantised weights too, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._merge import compare, merged_tensors
from lorikeet.adapters._storage import fill, read_adapter, save_adapter
from lorikeet.adapters.dora import Dora
from lorikeet.adapters.full import Full
from lorikeet.adapters.ia3 import Ia3
from lorikeet.adapters.lora import Lora
from lorikeet.base.errors import RecipeError
from lorikeet.base.yaml_lines import dump
from lorikeet.cli.main import run_command
from lorikeet.models.build import Build
from lorikeet.models.experts import ExpertSizes
from lorikeet.quant.nf4 import NF4
from lorikeet.quant.none import NoQuant
from parity import test_step, tiny

from .test_full import PROBES, own

EXPERTS = ExpertSizes(count=2, chosen=1, width=12, normalised=True)


def quantised() -> tiny.Decoder:
    plain = tiny.decoder(dtype=torch.float32, width=64, head_dim=16, tied=False)
    model = tiny.Decoder(plain.spec, Build(NF4(), torch.float32, tiny.CPU))
    for slot, given in zip(model.slots(), plain.slots()):
        assert slot.write is not None
        slot.write(given.read(torch.float32))
    return model


def gradients(model: tiny.Decoder, adapter: Adapter) -> dict[str, torch.Tensor]:
    rows = test_step.packed(test_step.some_conversations(), share=True)
    return tiny.loss_and_gradients(model, adapter.parameters(model), rows)[1]


@pytest.mark.parametrize("words", [["k_proj"], ["layers.1", "norm"], ["embed_tokens", "lm_head", "down_proj"]])
def test_modules_have_the_gradients_of_full_tuning(words: list[str]) -> None:
    """Where A and B begin, the network is the base."""
    whole, model = (tiny.decoder(tied=False, bias=True) for _ in range(2))
    Full().attach(whole, seed=0)
    expected = gradients(whole, Full())
    adapter = Lora(r=2, modules_to_save=words)
    adapter.attach(model, seed=0)
    found = gradients(model, adapter)
    mine = {name.removeprefix("base_model.model."): one for name, one in found.items() if "lora_" not in name}
    assert mine and len(mine) < len(expected) and len(found) > len(mine)
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)
    assert all(gradient.any() for name, gradient in found.items() if "lora_B" in name)


@pytest.mark.parametrize("adapter", [Lora(modules_to_save=["v_proj"]), Dora(modules_to_save=["v_proj", "lm_head"])])
def test_quantised_linears_train_in_the_models_dtype_over_float32_masters(adapter: Adapter, tmp_path: Path) -> None:
    """It begins as the numbers that it was kept as; the others of its group stay as quantised as they were."""
    model, untouched = quantised(), quantised()
    adapter.attach(model, seed=0)
    assert compare(model, untouched, PROBES, 1e-5).max_difference < 1e-4
    name = "base_model.model.model.layers.0.self_attn.v_proj.weight"
    assert adapter.parameters(model)[name].dtype == torch.float32
    v = dict(untouched.linears())["model.layers.0.self_attn.v_proj"].dense(torch.float32)
    torch.testing.assert_close(adapter.parameters(model)[name].data, v)
    assert gradients(model, adapter)[name].any()
    with torch.no_grad():
        for one in adapter.parameters(model).values():
            one.add_(torch.randn(one.shape, generator=torch.Generator().manual_seed(1)) / 20)
    save_adapter(tmp_path, adapter, model, {})
    read, tensors, _ = read_adapter(tmp_path)
    again = quantised()
    read.attach(again, seed=4)
    fill(again, read, tensors, source="test")
    assert compare(model, again, PROBES, 1e-5).max_difference == 0
    merged = tiny.Decoder(model.spec, Build(NoQuant(), torch.float32, tiny.CPU))
    written = dict(merged_tensors(model, adapter, torch.float32))
    for slot in merged.slots():
        assert slot.write is not None
        slot.write(written[slot.name])
    assert compare(model, merged, PROBES, 1e-4).max_difference < 1e-3


def test_a_run_with_a_tied_head_says_that_it_is_untied_and_merges(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    tied = tmp_path / "tied"
    shutil.copytree(tiny_model, tied)
    config = json.loads((tied / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tied / "config.json").write_text(json.dumps(config))
    tensors = {name: one for name, one in load_file(tied / "model.safetensors").items() if "lm_head" not in name}
    save_file(tensors, tied / "model.safetensors", metadata={"format": "pt"})
    recipe = {
        "output_dir": "run",
        "model": {"path": "tied", "dtype": "bfloat16", "device": "cpu", "threads": 1},
        "quant": {"kind": "nf4"},
        "adapter": {"kind": "lora", "r": 2, "modules_to_save": ["lm_head", "k_proj"]},
        "data": {"train": [str(tiny_data)], "max_length": 128},
        "train": {"examples_per_step": 4, "max_steps": 3, "row_tokens": 256, "learning_rate": 0.01},
    }
    Path("recipe.yaml").write_text(dump(recipe))
    assert run_command(["train", "recipe.yaml"]) == 0
    assert "the head was tied to the embedding" in capsys.readouterr().err
    assert run_command(["plan", "recipe.yaml"]) == 0
    assert run_command(["merge", "run", "merged"]) == 0
    assert json.loads(Path("merged/config.json").read_text())["tie_word_embeddings"] is False
    made = load_file("merged/model.safetensors")
    assert not torch.equal(made["lm_head.weight"], made["model.embed_tokens.weight"])
    assert run_command(["merge", "run", "beside", "--keep-adapter"]) == 2
    assert "modules that trained whole" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("adapter", "experts", "said"),
    [
        (Lora(modules_to_save=["embed_token"]), None, "no module named 'embed_token'"),
        (Lora(modules_to_save=["q_prj"]), None, "adapter.modules_to_save='[q_proj]'"),
        (Dora(modules_to_save=["norm", "nothing"]), None, "no module named 'nothing'"),
        (Ia3(modules_to_save=["lm_heads"]), None, "no module named 'lm_heads'"),
        (Lora(modules_to_save=["experts"]), EXPERTS, "adapter.kind=full trains experts"),
        (Lora(modules_to_save=["mlp"]), EXPERTS, "no modules that could be saved whole"),
    ],
)
def test_what_cannot_be_saved_whole_is_refused(adapter: Adapter, experts: ExpertSizes | None, said: str) -> None:
    with pytest.raises(RecipeError, match=r"adapter\.modules_to_save: ") as error:
        adapter.attach(tiny.decoder(experts=experts, tied=False), seed=0)
    assert said in str(error.value)


def test_a_tie_that_cannot_be_undone_is_refused() -> None:
    model = own(torch.float32)
    model.head.weight = model.module.embed.weight
    with pytest.raises(RecipeError, match="cannot have one of its own") as error:
        Lora(modules_to_save=["embed"], target_modules=["mix"]).attach(model, seed=0)
    assert "adapter.kind=head" in str(error.value)


@pytest.mark.parametrize("kind", [Lora, Dora, Ia3])
def test_an_empty_name_is_refused(kind: type[Adapter]) -> None:
    with pytest.raises(ValidationError, match="an empty name means every module"):
        kind.model_validate({"modules_to_save": ["norm", ""]})


def test_tied_adapters_of_peft_are_refused() -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "ensure_weight_tying": True}
    with pytest.raises(RecipeError, match="ensure_weight_tying"):
        Lora.from_peft(config)


def test_a_linear_that_trains_whole_has_no_update() -> None:
    model, adapter = tiny.decoder(), Lora(modules_to_save=["v_proj", "layers.1.mlp"])
    adapter.attach(model, seed=0)
    names = {name for name in adapter.parameters(model) if "lora_A" in name}
    assert len(names) == 2 * 6 - 3 and not any("v_proj" in name or "layers.1.mlp" in name for name in names)
