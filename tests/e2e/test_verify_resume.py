"""verify resume: real processes, a real SIGKILL, and what it says when something differs."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from e2e.conftest import Place
from lorikeet import config
from lorikeet.api import interrupting
from lorikeet.base.errors import CheckFailed
from lorikeet.train.metrics import Metrics
from lorikeet.verify.resume import compare, tensor_difference

LONG = {"max_steps": 12, "examples_per_step": 2, "save_steps": "-"}


def test_a_killed_run_comes_to_the_same(place: Place, tiny_data: Path) -> None:
    place.recipe(adapter={"lora_dropout": 0.1}, train=LONG)
    found = place.ok("verify", "resume", "recipe.yaml", "--seed", "3")
    made = json.loads(Path("resume_certificate.json").read_text())
    assert made["passed"] and made["broken"] == [] and made["steps"] == 5 and len(made["kills"]) == 1
    assert {row["what"] for row in made["rows"]} >= {"adapter_model", "optimizer", "the loss", "evaluation"}
    assert 1 <= made["kills"][0]["behind_step"] <= 5 and made["kills"][0]["from_step"] in (0, 2, 4, 5)
    assert "adapter_model" in found.out and "same" in found.out and "DIFFERS" not in found.out
    assert sorted(path.name for path in Path().iterdir()) == ["recipe.yaml", "resume_certificate.json", "tiny.jsonl"]


def test_a_difference_fails_and_is_named(finished: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    file = other / "checkpoint-4" / "optimizer.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, file)
    rows = Metrics(other / "metrics.jsonl").rows()
    for row in rows:
        if row["kind"] == "chain" and row["step"] >= 3:
            row["loss"] = (2.0).hex()
    Metrics(other / "metrics.jsonl").keep(rows)
    found = {row.what: row for row in compare(finished, other, 4)}
    assert found["adapter_model"].difference is None and found["the tokens it saw"].verdict == "same"
    assert found["optimizer"].difference is not None and name in found["optimizer"].difference
    assert "from step 3 on" in str(found["the loss"].difference)
    with pytest.raises(CheckFailed, match="did not come to") as error:
        interrupting.refuse_differing({"passed": False, "broken": ["optimizer"], "certificate": "x.json"})
    assert error.value.exit_code == 1


def test_bits_that_are_equal_as_numbers_differ_all_the_same() -> None:
    assert tensor_difference({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])}) is not None
    nan = torch.tensor([float("nan")])
    assert tensor_difference({"a": nan}, {"a": nan.clone()}) is None
    assert tensor_difference({"a": nan}, {}) == "1 tensors are in one only"


@pytest.mark.parametrize("few", [64, 1])
def test_what_would_end_the_run_early_or_answers_is_left_out(
    place: Place, tiny_data: Path, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without evaluations early stopping is refused, without samples their steps are."""
    monkeypatch.setattr(interrupting, "FEW", few)
    best = {"early_stopping_patience": 1, "load_best_model_at_end": True, "metric_for_best_model": "ended"}
    place.recipe(
        train=LONG | best | {"eval_steps": 1},
        evaluate={"samples": 1, "sample_steps": 2, "metrics": ["ended"], "prompts": 1},
        limits={"tokens": 100, "time": "1s", "memory": "64GiB"},
    )
    short, steps = interrupting._shortened(config.load(Path("recipe.yaml")), 5)
    config.check_effects(short)
    assert steps == 5 and (short.train.eval_steps is None) == (few == 1)
    assert short.train.early_stopping_patience is None and short.evaluate.metrics == []
    assert (short.limits.time, short.limits.tokens, short.limits.memory) == (None, None, "64GiB")


def test_the_kill_falls_within_a_step_however_long_the_start_took(tmp_path: Path) -> None:
    chance, metrics = random.Random(0), Metrics(tmp_path / "metrics.jsonl")
    assert interrupting._pause(tmp_path, chance) == 0, "a step whose time nobody knows"
    for seconds, most in ((9.0, 7.2), (0.5, 0.4), (1000.0, 30.0)):
        metrics.append({"kind": "train", "step": 1, "seconds": seconds})
        found = [interrupting._pause(tmp_path, chance) for _ in range(100)]
        assert 0 <= min(found) < 0.1 * most and 0.9 * most < max(found) <= most


def test_kills_before_the_first_checkpoint_went_on_from_nothing() -> None:
    """The record of a run that begins again has one beginning."""
    killed: list[dict[str, Any]] = [{"behind_step": step, "from_step": None} for step in (1, 1, 3)]
    interrupting._went_on(killed, [{"step": 0}, {"step": 2}])
    assert [kill["from_step"] for kill in killed] == [0, 0, 2]


def test_too_few_steps_to_be_interrupted_in(place: Place, tiny_data: Path) -> None:
    place.recipe(train={"max_steps": 2})
    place.refused("verify resume recipe.yaml", "RecipeError: a run of so few steps", "2 steps", "at least 4")


def test_a_certificate_that_cannot_be_written(place: Place, tiny_data: Path) -> None:
    place.recipe()
    place.refused("verify resume recipe.yaml --output nowhere/c.json", "OutputError: nowhere/c.json: cannot be written")


def test_a_recipe_whose_run_fails(place: Place, tiny_data: Path) -> None:
    place.recipe(train=LONG | {"lr_scheduler_type": {"kind": "warmup_stable_decay", "num_decay_steps": 99}})
    found = place.run("verify", "resume", "recipe.yaml")
    assert found.code == 1 and "the recipe's own run failed" in found.err and "num_decay_steps" in found.err
