"""Several adapters as one: the sum of their updates, what PEFT makes of the same, and what cannot be added."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorikeet.adapters._combine import combine
from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._storage import read_adapter, save_adapter
from lorikeet.adapters.dora import Dora
from lorikeet.adapters.lora import Lora
from lorikeet.base.errors import CheckpointError, LorikeetError, OutputError, RecipeError
from lorikeet.cli.main import run_command
from parity import tiny

Make = Callable[..., Path]
TARGETS = ["q_proj", "up_proj"]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(name, seed, options...): the folder of a trained adapter on the tiny decoder."""

    def made(name: str, seed: int, adapter: Adapter | None = None, base: str = "tiny", **options: Any) -> Path:
        model = tiny.decoder(bias=True)
        adapter = adapter or Lora(**{"r": 2, "target_modules": TARGETS} | options)
        adapter.attach(model, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapter.parameters(model).values():
                parameter.normal_(0, 0.3, generator=generator)
        (tmp_path / name).mkdir()
        save_adapter(tmp_path / name, adapter, model, {"base": base, "base_fingerprint": base, "quant": None})
        return tmp_path / name

    return made


def updates(folder: Path) -> dict[str, torch.Tensor]:
    """s B A of each linear."""
    adapter, tensors, _ = read_adapter(folder)
    assert isinstance(adapter, Lora)
    stems = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith("lora_A.weight")]
    return {
        stem.removeprefix("base_model.model."): adapter.factor_of(stem.removeprefix("base_model.model."))
        * tensors[f"{stem}.lora_B.weight"].double()
        @ tensors[f"{stem}.lora_A.weight"].double()
        for stem in stems
    }


@pytest.mark.parametrize(("way", "rank"), [("cat", None), ("svd", 7), ("svd", 20)])
def test_the_sum_is_exact_where_the_rank_allows(way: str, rank: int | None, make: Make, tmp_path: Path) -> None:
    parts = [make("a", 1, r=3, lora_alpha=5), make("b", 2, use_rslora=True), make("c", 3, target_modules=["k_proj"])]
    found = combine(parts, [0.7, -0.3, 2.0], tmp_path / "sum", way=way, rank=rank)
    one, two, three = map(updates, parts)
    total = updates(tmp_path / "sum")
    assert set(total) == set(one) | set(three) and found["linears"] == len(total) == 6
    for name, update in total.items():
        parted = 2.0 * three[name] if name in three else 0.7 * one[name] - 0.3 * two[name]
        torch.testing.assert_close(update, parted, rtol=1e-5, atol=1e-6)
    model = tiny.decoder()
    read_adapter(tmp_path / "sum")[0].attach(model, seed=0)


def test_svd_keeps_the_nearest_of_its_rank(make: Make, tmp_path: Path) -> None:
    parts = [make("a", 1), make("b", 2)]
    assert combine(parts, [1, 1], tmp_path / "sum", way="svd")["r"] == 2  # the largest of the adapters'
    one, two, near = map(updates, (*parts, tmp_path / "sum"))
    for name, update in near.items():
        exact = one[name] + two[name]
        lost = torch.linalg.svdvals(exact)[2:].norm()
        torch.testing.assert_close((exact - update).norm(), lost, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["cat", "svd", "linear"])
def test_it_is_what_peft_makes(way: str, make: Make, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    parts = [make("a", 1, lora_alpha=3), make("b", 2)]
    combine(parts, [0.7, -0.3], tmp_path / "sum", way=way)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = torch.nn.Linear(16, 24, bias=False)

    theirs = peft.get_peft_model(Net(), peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj"]), "a")
    theirs.add_adapter("b", peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]))
    name = "model.layers.1.self_attn.q_proj"
    with torch.no_grad():
        for which, part in zip("ab", parts):
            tensors = load_file(part / "adapter_model.safetensors")
            for side in ("lora_A", "lora_B"):
                value = tensors[f"base_model.model.{name}.{side}.weight"]
                getattr(theirs.base_model.model.q_proj, side)[which].weight.copy_(value)
    theirs.add_weighted_adapter(["a", "b"], [0.7, -0.3], "sum", combination_type=way)
    expected = theirs.base_model.model.q_proj.get_delta_weight("sum")
    torch.testing.assert_close(updates(tmp_path / "sum")[name].float(), expected, rtol=1e-4, atol=1e-5)


def test_what_is_written_says_of_what_it_is_the_sum(make: Make, tmp_path: Path) -> None:
    parts = [make("a", 1), make("b", 2)]
    combine(parts, [0.5, 0.5], tmp_path / "sum")
    said = json.loads((tmp_path / "sum" / "lorikeet.json").read_text())
    assert said["base_fingerprint"] == "tiny" and [part["weight"] for part in said["parts"]] == [0.5, 0.5]
    config = json.loads((tmp_path / "sum" / "adapter_config.json").read_text())
    assert config["target_modules"] == TARGETS and config["r"] == config["lora_alpha"] == 4


@pytest.mark.parametrize(
    ("second", "options", "kind", "said"),
    [
        ({}, {"weights": [1.0]}, RecipeError, "one number for each adapter"),
        ({}, {"weights": [1.0, float("nan")]}, RecipeError, "one number for each adapter"),
        ({}, {"weights": [1.0, -1e308]}, RecipeError, "one number for each adapter"),
        ({}, {"way": "ties"}, RecipeError, "there is no 'ties'"),
        ({}, {"rank": 4}, RecipeError, "no effect with --combination cat"),
        ({}, {"way": "svd", "rank": 0}, RecipeError, "above 0"),
        ({"r": 3}, {"way": "linear"}, CheckpointError, "differ in rank"),
        ({"base": "other"}, {}, CheckpointError, "different base models"),
        ({"bias": "all"}, {}, CheckpointError, "trained biases (all)"),
        ({"adapter": Dora(r=2)}, {}, CheckpointError, "kind dora"),
    ],
)
def test_what_cannot_be_added_is_refused_and_nothing_is_written(
    second: dict[str, Any], options: dict[str, Any], kind: type[LorikeetError], said: str, make: Make, tmp_path: Path
) -> None:
    parts = [make("a", 1), make("b", 2, **second)]
    with pytest.raises(kind) as error:
        combine(parts, output=tmp_path / "sum", **{"weights": [0.5, 0.5]} | options)
    assert said in str(error.value) and not (tmp_path / "sum").exists()


def test_one_adapter_alone_and_a_folder_that_is_taken_are_refused(make: Make, tmp_path: Path) -> None:
    part = make("a", 1)
    with pytest.raises(RecipeError, match="at least two"):
        combine([part], [1.0], tmp_path / "sum")
    with pytest.raises(OutputError, match="exists already"):
        combine([part, part], [1.0, 1.0], part)


def test_the_command(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(make("a", 1)), str(make("b", 2))
    for i, weights in enumerate((["--weights", "0.7", "0.3"], ["--weights", "0.7,0.3"])):
        assert run_command(["adapters", "merge", a, b, *weights, "--output", str(tmp_path / f"sum{i}")]) == 0
    first, second = (updates(tmp_path / f"sum{i}") for i in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert run_command(["adapters", "merge", a, b, "--weights", "much", "--output", str(tmp_path / "no")]) == 2
    assert "not a number" in capsys.readouterr().err
