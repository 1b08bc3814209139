"""train --from RUN: a new run that starts from what another has learned, and names it. --force-resume, --stop-after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.conftest import Place
from lorikeet.base.files import sha256_file
from lorikeet.config import load

WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture
def first(place: Place, tiny_data: Path) -> Place:
    """A place with a finished run `run`."""
    place.recipe(evaluate={"samples": 0})
    place.ok("train", "recipe.yaml")
    return place


def evaluations(run: str) -> list[float]:
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "eval"]


def test_a_new_run_from_a_run_names_its_parent(first: Place) -> None:
    first.ok("train", "--from", "run", "recipe.yaml", "output_dir=second", "train.max_steps=2")
    assert evaluations("second")[0] == pytest.approx(evaluations("run")[-1], abs=1e-6)
    summary = json.loads(Path("second/summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["parent"] == {"adapter": "run/adapter", "sha256": sha256_file(Path("run") / WEIGHTS)}
    assert load("second/recipe.yaml").adapter.path == Path("run")
    # its own recipe, with another schedule; and a chain of three
    first.ok("train", "--from", "second", "output_dir=third", "train.lr_scheduler_type=constant")
    assert evaluations("third")[0] == pytest.approx(evaluations("second")[-1], abs=1e-6)
    assert load("third/recipe.yaml").adapter.path == Path("second")


def test_the_kind_is_the_run_s(place: Place, tiny_data: Path) -> None:
    place.recipe(adapter={"kind": "dora"}, evaluate={"samples": 0})
    place.ok("train", "recipe.yaml")
    place.recipe(adapter="-", evaluate={"samples": 0})
    place.ok("train", "--from", "run", "recipe.yaml", "output_dir=second")
    assert load("second/recipe.yaml").adapter.model_dump()["kind"] == "dora"


def test_bad_words(first: Place) -> None:
    first.refused("train --from run recipe.yaml", "RecipeError: output_dir: is the run that it starts from", "run-2")
    first.refused("train --from nowhere recipe.yaml output_dir=x", "CheckpointError: ", "nowhere")
    first.recipe(adapter={"path": "elsewhere"})
    words = "train --from run recipe.yaml output_dir=x"
    first.refused(words, "RecipeError: adapter.path and --from say different things", "elsewhere", "run")


def test_what_differs_is_refused_with_both_sides_and_can_be_forced(place: Place, tiny_data: Path) -> None:
    place.recipe(train={"max_steps": 6}, evaluate={"samples": 0})
    stopped = place.run("train", "recipe.yaml", "--stop-after", 3)
    assert stopped.code == 3 and "stopped after step 3 of 6" in stopped.err
    changed = ["train", "recipe.yaml", "train.learning_rate=0.02", "train.max_grad_norm=2"]
    facts = (
        "learning_rate=0.02; max_grad_norm=2.0",
        "learning_rate=0.01; max_grad_norm=1.0",
        "--from run",
        "--force-resume",
    )
    place.refused(
        changed, "RecipeError: train.learning_rate, train.max_grad_norm differ from what checkpoint-3", *facts
    )
    place.ok(*changed, "--force-resume")
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["forced"] == [
        {
            "step": 3,
            "train.learning_rate": {"now": 0.02, "before": 0.01},
            "train.max_grad_norm": {"now": 2.0, "before": 1.0},
        }
    ]


def test_when_it_is_saved_may_change(place: Place, tiny_data: Path) -> None:
    place.recipe(train={"max_steps": 6}, evaluate={"samples": 0})
    assert place.run("train", "recipe.yaml", "--stop-after", 3).code == 3
    place.ok("train", "recipe.yaml", "train.save_steps=1", "train.eval_steps=2")
    assert "forced" not in json.loads(Path("run/summary.json").read_text())
