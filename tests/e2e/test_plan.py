"""`lorikeet plan`: what it says, what it answers, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import Place
from lorikeet.checkpoints import download


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps are looked at, however long that takes."""
    monkeypatch.setattr("lorikeet.plan.steps.LOOK_SECONDS", float("inf"))


def facts(place: Place, *words: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(place.ok("plan", place.folder / "recipe.yaml", "--json", *words).out)
    return found


def test_the_page_says_memory_peak_and_time(place: Place) -> None:
    said = place.ok("plan", place.recipe()).out
    for word in ("weights", "saved activations", "optimizer", "tensors", "at the peak:", "process", "free now"):
        assert word in said, said
    assert "TFLOP/s of a timed matmul" in said and "the run of 4 steps" in said
    assert "costs most of 4 steps" in said
    assert not (place.folder / "run").exists(), "planning makes no run"


def test_the_plan_is_the_run_s(place: Place) -> None:
    place.recipe()
    found = facts(place)
    assert sum(found["bytes"].values()) == found["peak_tensor_bytes"] < found["process_bytes"]
    assert found["step"]["looked_at"] == found["step"]["steps"] == 4
    assert found["data"] == "known"
    assert found["flops"]["run"] > 3 * found["flops"]["step"] * 0.5
    place.ok("train", place.folder / "recipe.yaml")
    summary = json.loads((place.folder / "run" / "summary.json").read_text())
    assert found["trainable_parameters"] == summary["trainable_parameters"]


def test_overrides_count(place: Place) -> None:
    place.recipe()
    small, large = facts(place, "adapter.r=4"), facts(place, "adapter.r=16")
    assert large["bytes"]["trained"] == 4 * small["bytes"]["trained"]


def config_only(place: Place) -> Path:
    """A folder as it is before the download: config.json and nothing else."""
    folder = place.folder / "later"
    folder.mkdir()
    (folder / "config.json").write_bytes((place.model / "config.json").read_bytes())
    return folder


def test_a_config_is_enough(place: Place) -> None:
    place.recipe(model={"path": str(config_only(place))})
    found = facts(place)
    assert "tokenizer" in found["data"]
    assert found["step"]["rows"][0]["tokens"] == 256, "a full row"
    with_weights = facts(place, f"model.path={place.model}")
    assert with_weights["bytes"]["weights"] == found["bytes"]["weights"]
    assert "the data are not known" in place.ok("plan", place.folder / "recipe.yaml").out


def test_a_tokenizer_beside_the_config_makes_the_data_known(place: Place) -> None:
    folder = config_only(place)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((place.model / name).read_bytes())
    place.recipe(model={"path": str(folder)})
    assert facts(place)["data"] == "known"


def test_a_gpu_that_is_not_here_is_planned_for(place: Place) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    place.recipe(model={"device": "cuda", "dtype": "bfloat16"})
    found = facts(place)
    assert (found["device"], found["device_here"], found["free_bytes"], found["step_seconds"]) == (
        "cuda", False, None, None
    )  # fmt: skip
    assert "a GPU's attention" in place.ok("plan", place.folder / "recipe.yaml").out


def test_memory_that_suffices(place: Place) -> None:
    said = place.ok("plan", place.recipe(), "--memory", "64GiB").out
    assert "fits 64.00 GiB as it is" in said


def test_memory_that_some_change_meets(place: Place) -> None:
    place.recipe(
        model={"path": str(config_only(place))},
        data={"max_length": 256},
        train={"row_tokens": 4096, "examples_per_step": 16},
    )

    def found(*words: str) -> dict[str, Any]:
        """Each plan in a process of its own: what this one holds grows from test to test."""
        result = place.process("plan", place.folder / "recipe.yaml", "--json", *words)
        assert result.code == 0, result.err
        told: dict[str, Any] = json.loads(result.out)
        return told

    need = found()["process_bytes"]
    answer = found("--memory", f"{need / 2**20 - 20:.0f}MiB")
    assert answer["fits"] and not answer["as_it_is"]
    first = answer["answers"][0]
    rows = first["recipe"]["train"]["row_tokens"]
    assert first["recipe"] == {"train": {"row_tokens": rows}} and rows < 4096 and first["same_model"]
    assert first["process_bytes"] <= answer["memory_bytes"] < need
    fitted = found(f"train.row_tokens={rows}")
    assert fitted["process_bytes"] == pytest.approx(first["process_bytes"], rel=0.1)


def test_memory_that_nothing_meets(place: Place) -> None:
    result = place.run("plan", place.recipe(), "--memory", "2MiB")
    assert result.code == 1
    assert "CheckFailed: nothing that was tried fits 2MiB" in result.err
    assert "not enough:" in result.out and "even with" in result.out
    most = "Python, torch and the tokenizer"  # of so small a model's training
    assert f"as it is, most of it {most}; 2 MiB" in result.out and f"most of it is {most}" in result.out


@pytest.mark.parametrize("size", ["", "much", "8 parsecs", "-4GiB", "0GiB", "12", "GiB", "nanGiB"])
def test_a_memory_that_is_none(place: Place, size: str) -> None:
    place.refused(
        ["plan", str(place.recipe()), f"--memory={size}"], "RecipeError: --memory", "allowed", "--memory 8GiB"
    )


def test_a_folder_without_a_config(place: Place) -> None:
    (place.folder / "nothing").mkdir()
    place.recipe(model={"path": "nothing"})
    place.refused("plan recipe.yaml", "CheckpointError: ", "config.json")


def test_a_config_that_is_not_json(place: Place) -> None:
    folder = config_only(place)
    (folder / "config.json").write_text("{")
    place.recipe(model={"path": str(folder)})
    place.refused("plan recipe.yaml", "CheckpointError: ", "not JSON")


def test_a_network_that_is_unknown(place: Place) -> None:
    folder = config_only(place)
    (folder / "config.json").write_text('{"model_type": "perceptron"}')
    place.recipe(model={"path": str(folder)})
    place.refused("plan recipe.yaml", "ModelError: unknown kind of network", "perceptron")


def test_an_alias_that_is_not_downloaded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(download.ALIASES, "later", "pypi:no-such-model")
    place.recipe(model={"path": "later"})
    place.refused("plan recipe.yaml", "DownloadError: 'later' is not downloaded", "lorikeet download later")


def test_a_layer_that_is_not_there(place: Place) -> None:
    place.recipe(adapter={"target_modules": ["q_prj"]})
    place.refused("plan recipe.yaml", "RecipeError: adapter.target_modules", "q_prj", "recipe.yaml:")


def test_an_option_without_effect(place: Place) -> None:
    place.recipe(train={"optim": "sgd", "adam_beta1": 0.8})
    place.refused("plan recipe.yaml", "RecipeError: train.adam_beta1: has no effect")


def test_what_train_would_refuse_is_refused(place: Place) -> None:
    place.recipe(train={"lr_scheduler_type": {"kind": "warmup_stable_decay", "num_decay_steps": 8}})
    place.refused("plan recipe.yaml", "RecipeError: train.lr_scheduler_type.num_decay_steps: the phases are longer")
    place.recipe(train={"load_best_model_at_end": True, "eval_steps": 9})
    place.refused("plan recipe.yaml", "RecipeError: train.load_best_model_at_end: has no effect in this run")
    place.recipe(model={"dtype": "float16"}, train={"optimizer_in_backward": True, "max_grad_norm": 0})
    place.refused("plan recipe.yaml", "RecipeError: train.optimizer_in_backward: float16")


def test_a_device_that_nobody_has(place: Place) -> None:
    place.recipe(model={"device": "abacus"})
    place.refused("plan recipe.yaml", "ModelError: model.device", "abacus")


def test_a_max_length_beyond_the_context(place: Place) -> None:
    place.recipe(data={"max_length": 100_000})
    place.refused("plan recipe.yaml", "RecipeError: data.max_length: beyond the model's context")


def test_full_tuning_that_does_not_fit_gets_a_leaner_optimizer(place: Place) -> None:
    """Where masters, gradients and averages are what takes the memory, rows are not what has to give way."""
    place.recipe(adapter={"kind": "full", "r": "-"}, model={"dtype": "bfloat16"})
    tensors = facts(place)["bytes"]
    assert tensors["weights"] == 0 and tensors["optimizer"] > 1.9 * tensors["trained"]
    answer = json.loads(place.run("plan", place.folder / "recipe.yaml", "--json", "--memory", "2MiB").out)
    leaner = next(one for one in answer["answers"] if one["change"] == "a leaner optimizer")
    assert leaner["recipe"]["train"]["optimizer_in_backward"] and leaner["recipe"]["train"]["optim"] == "adamw_8bit"
    assert leaner["process_bytes"] < answer["process_bytes"] - tensors["trained"] / 2
