"""adapter.path: training that goes on from an adapter that is there already."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from e2e.conftest import Place, Result
from lorikeet import api
from lorikeet.base.files import sha256_file
from lorikeet.base.kinds import kinds

FIRST: dict[str, dict[str, Any]] = {  # of some kinds, options that the second run has to find in the folder
    "lora": {"r": 3, "target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 2}, "lora_alpha": 5.0},
    "dora": {"r": 2, "layers_to_transform": [1]},
    "full": {"target_modules": ["layers.1", "norm"]},
    "bias": {"norms": True},
    "prefix": {"num_virtual_tokens": 5},
    "prompt": {"num_virtual_tokens": 7},
}
MEASURED = {"evaluate": {"before": True, "samples": 0}}
Train = Callable[..., Result]


@pytest.fixture
def train(place: Place) -> Train:
    """train(folder, adapter, words...): a recipe `folder`.yaml of two steps, run."""

    def run(folder: str, adapter: dict[str, Any], *words: str, **changes: Any) -> Result:
        steps = {"max_steps": 2, "learning_rate": 0.003, "eval_steps": 2, "save_steps": 1}
        place.recipe(output_dir=folder, adapter={"r": "-", **adapter}, train=steps, **MEASURED, **changes)
        Path("recipe.yaml").rename(f"{folder}.yaml")
        return place.run("train", f"{folder}.yaml", *words)

    return run


def held_out(folder: str) -> list[float]:
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "eval"]


@pytest.mark.parametrize("kind", kinds("lorikeet.adapters"))
def test_it_begins_where_the_other_ended(train: Train, place: Place, kind: str) -> None:
    assert train("one", {"kind": kind, **FIRST.get(kind, {})}).code == 0
    second = train("two", {"kind": kind, "path": "one"})
    assert second.code == 0, second.err
    one, two = held_out("one"), held_out("two")
    assert two[0] == pytest.approx(one[-1], abs=1e-6) and two[0] != pytest.approx(one[0], abs=1e-5)
    assert two[-1] < two[0]
    file = Path("one/adapter/adapter_model.safetensors")
    assert json.loads(Path("two/adapter/lorikeet.json").read_text())["parent_adapter"] == sha256_file(file)
    before, after = load_file(file), load_file("two/adapter/adapter_model.safetensors")
    assert {name: one.shape for name, one in before.items()} == {name: one.shape for name, one in after.items()}
    assert place.run("plan", "two.yaml").code == 0


def test_it_resumes(train: Train, place: Place) -> None:
    assert train("one", {"kind": "lora", "r": 3}).code == 0
    assert train("two", {"kind": "lora", "path": "one"}).code == 0
    shutil.copytree("two", "again")
    for name in ("checkpoint-2", "adapter"):
        shutil.rmtree(f"again/{name}")
    Path("again/summary.json").unlink()
    resumed = place.run("train", "two.yaml", "output_dir=again")
    assert resumed.code == 0 and "going on from again/checkpoint-1" in resumed.err
    again, two = (load_file(f"{name}/adapter/adapter_model.safetensors") for name in ("again", "two"))
    assert all(torch.equal(again[name], two[name]) for name in two)


def test_no_run_goes_on_from_another_parent_than_it_began_with(train: Train, place: Place) -> None:
    for name, seed in (("one", 1), ("other", 2)):
        assert train(name, {"kind": "lora", "r": 3}, f"train.seed={seed}").code == 0
    assert train("two", {"kind": "lora", "path": "one"}).code == 0
    shutil.rmtree("two/adapter")
    Path("two/summary.json").unlink()
    found = place.run("train", "two.yaml", "adapter.path=other")
    assert found.code == 2 and "parent_adapter" in found.err


def test_a_folder_of_peft_s(train: Train, place: Place) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(place.model, dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"])
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    theirs.save_pretrained("theirs")
    assert train("bare", {"kind": "lora"}).code == 0
    assert train("two", {"kind": "lora", "path": "theirs", "lora_dropout": 0.1}).code == 0
    measured = api.evaluate(Path("two"), adapter=Path("theirs"))
    assert measured["eval_loss"] == pytest.approx(held_out("two")[0], abs=1e-6)
    assert held_out("two")[0] != pytest.approx(held_out("bare")[0], abs=1e-5)
    said = json.loads(Path("two/adapter/adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["lora_dropout"]) == (3, 5.0, 0.1)


def test_a_prefix_goes_on_through_an_mlp(train: Train) -> None:
    assert train("one", {"kind": "prefix", "num_virtual_tokens": 5}).code == 0
    assert train("two", {"kind": "prefix", "path": "one", "prefix_projection": True}).code == 0
    assert held_out("two")[0] == pytest.approx(held_out("one")[-1], abs=1e-6)


def test_new_tokens_go_on(train: Train, place: Place) -> None:
    grown = {"model": {"add_tokens": ["<|turn|>", "<|done|>"]}}
    assert train("one", {"kind": "lora"}, **grown).code == 0
    assert train("two", {"kind": "lora", "path": "one"}, **grown).code == 0
    assert held_out("two")[0] == pytest.approx(held_out("one")[-1], abs=1e-6)
    found = train("three", {"kind": "lora", "path": "one"})
    assert found.code == 2 and "model.add_tokens: differs" in found.err


def test_a_recipe_may_say_again_what_the_folder_says_and_how_it_goes_on(train: Train) -> None:
    assert train("one", {"kind": "lora", "r": 3, "init_lora_weights": "gaussian"}).code == 0
    again = {"kind": "lora", "r": 3, "target_modules": "all-linear", "loraplus_lr_ratio": 4.0}
    assert train("two", {**again, "path": "one/checkpoint-2"}).code == 0
    assert train("three", {"kind": "lora", "path": "two"}).code == 0
    assert "one/checkpoint-2" in Path("two/recipe.yaml").read_text()


DIFFERENT: list[tuple[dict[str, Any], str]] = [
    ({"r": 8}, "adapter.r: differs"),
    ({"lora_alpha": 1}, "adapter.lora_alpha: differs"),
    ({"use_rslora": True}, "differs from the adapter"),
    ({"target_modules": ["q_proj"]}, "adapter.target_modules: differs"),
    ({"rank_pattern": {"q_proj": 2}}, "adapter.r: differs"),
    ({"init_lora_weights": "pissa"}, "adapter.init_lora_weights: has no effect"),
    ({"kind": "dora"}, "one/adapter is of another kind"),
    ({"kind": "full"}, "one/adapter is of another kind"),
    ({"path": "nowhere"}, "no adapter_config.json in"),
    ({"path": "broken"}, "no adapter_model.safetensors in"),
]


def test_what_differs_is_refused(train: Train, place: Place) -> None:
    assert train("one", {"kind": "lora", "r": 3}).code == 0
    Path("broken").mkdir()
    Path("broken/adapter_config.json").write_text('{"peft_type": "LORA"}')
    for second, said in DIFFERENT:
        for found in (train("two", {"kind": "lora", "path": "one"} | second), place.run("plan", "two.yaml")):
            assert found.code == 2 and said in " ".join(found.err.split()), second
        assert not Path("two").exists() or not Path("two/adapter").exists()


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"kind": "prefix", "num_virtual_tokens": 5}, {"num_virtual_tokens": 6}, "adapter.num_virtual_tokens: differs"),
        ({"kind": "prompt", "num_virtual_tokens": 5}, {"init_text": "Hello"}, "adapter.init_text: has no effect"),
        ({"kind": "ia3"}, {"feedforward_modules": []}, "adapter.feedforward_modules: differs"),
        ({"kind": "full", "target_modules": ["norm"]}, {"target_modules": "all"}, "adapter.target_modules: differs"),
    ],
)
def test_what_differs_of_other_kinds(train: Train, first: dict[str, Any], second: dict[str, Any], said: str) -> None:
    assert train("one", first).code == 0
    found = train("two", {"kind": first["kind"], "path": "one"} | second)
    assert found.code == 2 and said in " ".join(found.err.split())


def test_another_base_is_refused(train: Train, make_model: Callable[..., Path], tmp_path: Path) -> None:
    assert train("one", {"kind": "lora", "r": 3}).code == 0
    other = make_model(tmp_path / "other", seed=5)
    found = train("two", {"kind": "lora", "path": "one"}, f"model.path={other}")
    assert found.code == 2 and "trained on another base model" in " ".join(found.err.split())
    found = train("two", {"kind": "lora", "path": "one"}, "quant.kind=nf4")
    assert found.code == 2 and "kept in another way" in " ".join(found.err.split())


def test_a_run_of_another_base_is_not_sent_where_it_would_be_refused_again(place: Place) -> None:
    """What a run learned goes on with other options of training, and on no other weights."""
    place.recipe()
    assert place.run("train", "recipe.yaml", "--stop-after", "2").code == 3
    for changed, offered in (("train.learning_rate=0.001", True), ("quant=nf4", False), ("quant.kind=int8", False)):
        said = place.refused(["train", "recipe.yaml", changed], "RecipeError: ", "so the run cannot go on")
        assert ("lorikeet train --from run" in said) == offered and "--force-resume" in said
