"""Evaluation that decides: replies measured while a run goes, the best model kept, early stopping, and evaluate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from e2e.conftest import Place
from lorikeet.infer import answers
from lorikeet.train import validation
from lorikeet.train.evaluate import EvalResult

LONG = {"max_steps": 8, "eval_steps": 1, "save_steps": 3}
REPLIES = {"metrics": ["exact_match", "ended", "rouge", "chrf"], "prompts": 3, "sample_steps": 3}


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] == kind]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder, "train")]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def same_adapter(left: Path, right: Path) -> bool:
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (left, right))
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


def drawn(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Evaluations find these losses, by the order in which they come."""
    left = iter(values)

    def found(*_: Any) -> EvalResult:
        loss = next(left)
        return EvalResult(loss, loss, 0.5, 10, 10)

    monkeypatch.setattr(validation, "evaluate", found)


def test_measuring_replies_changes_nothing_of_the_training(place: Place) -> None:
    changes: dict[str, Any] = {"train": {**LONG, "eval_steps": 2}, "adapter": {"lora_dropout": 0.2}}
    place.ok("train", place.recipe(output_dir="plain", **changes))
    place.ok("train", place.recipe(output_dir="watched", **changes, evaluate=REPLIES))
    plain, watched = place.folder / "plain", place.folder / "watched"
    assert losses(plain) == losses(watched) and len(losses(plain)) == 8
    assert same_adapter(plain / "adapter", watched / "adapter")
    found = rows(watched, "eval")
    assert [row["step"] for row in found] == [0, 2, 4, 6, 8]
    for row in found:
        assert {"exact_match", "ended", "rouge1", "rouge2", "rougeL", "chrf"} <= row.keys()
    assert [row["loss"] for row in found] == [row["loss"] for row in rows(plain, "eval")]
    assert summary(watched)["chrf"] == found[-1]["chrf"]
    samples = [json.loads(line) for line in (watched / "samples.jsonl").read_text().split("\n") if line]
    assert [list(one["at"]) for one in samples] == [["3", "6"]] and {"before", "after"} <= samples[0].keys()


def test_the_best_model_is_the_one_that_is_left(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(monkeypatch, [9.0, 5.0, 4.0, 4.5, 4.2, 4.1, 4.3, 4.4, 4.6])
    recipe = place.recipe(train={**LONG, "load_best_model_at_end": True, "save_total_limit": 1, "save_steps": 1})
    place.ok("train", recipe)
    run = place.folder / "run"
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-8"]
    assert same_adapter(run / "adapter", run / "checkpoint-2")
    assert not same_adapter(run / "adapter", run / "checkpoint-8")
    found = summary(run)
    assert (found["best_step"], found["best_loss"], found["eval_loss"], found["steps"]) == (2, 4.0, 4.0, 8)


def test_a_run_ends_where_nothing_better_comes_and_so_does_one_that_was_interrupted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [9.0, 5.0, 4.0, 4.5, 4.2, 4.1, 4.3, 4.4, 4.6]
    options = {**LONG, "early_stopping_patience": 3, "load_best_model_at_end": True, "save_steps": 1}
    recipe = place.recipe(train={**options, "save_total_limit": 9})
    drawn(monkeypatch, values)
    result = place.ok("train", recipe)
    run, whole = place.folder / "run", place.folder / "whole"
    assert "no better loss in 3 evaluations" in result.err
    assert (summary(run)["steps"], summary(run)["best_step"]) == (5, 2)
    assert summary(run)["ended_early"] == "no better loss in 3 evaluations"
    shutil.copytree(run, whole)
    for killed_after in (5, 3):
        for name in ("summary.json", "report.html"):
            (run / name).unlink()
        shutil.rmtree(run / "adapter")
        for step in range(killed_after + 1, 6):
            shutil.rmtree(run / f"checkpoint-{step}")
        drawn(monkeypatch, values[killed_after + 1 :])
        place.ok("train", recipe)
        assert losses(run) == losses(whole) and len(losses(run)) == 5
        assert [row["loss"] for row in rows(run, "eval")] == values[:6]
        assert same_adapter(run / "adapter", whole / "adapter")
        for name in ("best_step", "best_loss", "steps", "ended_early", "eval_loss"):
            assert summary(run)[name] == summary(whole)[name]


def test_how_replies_are_made_may_not_change_where_they_decide(place: Place) -> None:
    """A longer reply may end, or match: another evaluation would be the best one."""
    decided = {"early_stopping_patience": 3, "metric_for_best_model": "ended"}
    place.recipe(train={**LONG, "eval_steps": 4, **decided}, evaluate={"metrics": ["ended"], "prompts": 1})
    assert place.run("train", "recipe.yaml", "--stop-after=3", "generate.max_new_tokens=2").code == 3
    result = place.run("train", "recipe.yaml", "generate.max_new_tokens=3")
    assert result.code == 2 and "generate.max_new_tokens differs" in result.err
    shown = {"early_stopping_patience": "-", "metric_for_best_model": "-", **LONG, "eval_steps": 4}
    place.recipe(train=shown, evaluate={"metrics": ["ended"], "prompts": 1}, output_dir="shown")
    assert place.run("train", "recipe.yaml", "--stop-after=3", "generate.max_new_tokens=2").code == 3
    place.ok("train", "recipe.yaml", "generate.max_new_tokens=3")


def test_a_short_training_teaches_replies_to_end(place: Place) -> None:
    place.recipe(
        adapter={"kind": "full", "r": "-"},
        train={"max_steps": 40, "examples_per_step": 8, "learning_rate": 0.01},
        evaluate={"samples": 0, "before": False},
        generate={"max_new_tokens": 24},
    )
    place.ok("evaluate", "recipe.yaml", "--replies", "before.jsonl")
    place.ok("train", "recipe.yaml")
    result = place.ok("evaluate", "run", "--replies", "after.jsonl")
    shares = [
        sum(json.loads(line)["ended"] for line in (place.folder / name).read_text().splitlines()) / 4
        for name in ("before.jsonl", "after.jsonl")
    ]
    assert shares[0] < 0.5 and shares[1] == 1.0
    assert "ended" in result.out and "did not end by themselves" not in result.err


def test_evaluate_writes_a_row_a_reply_and_goes_on_where_it_stopped(
    place: Place, copied_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ("evaluate", copied_run / "recipe.yaml", "evaluate.metrics=[exact_match, ended, chrf]", "--replies")
    result = place.ok(*wanted, "whole.jsonl")
    whole = (place.folder / "whole.jsonl").read_text()
    made = [json.loads(line) for line in whole.splitlines()]
    assert len(made) == 4 and all({"prompt", "reply", "reference", "ended", "chrf"} <= row.keys() for row in made)
    assert "did not end by themselves" in result.err and "chrf" in result.out
    asked: list[int] = []
    every = answers._rows

    def some(engine: Any, pairs: Any, which: Any, options: Any) -> Any:
        asked.append(len(which))
        for number, found in enumerate(every(engine, pairs, which, options)):
            if len(asked) == 1 and number == 2:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(answers, "_rows", some)
    assert place.run(*wanted, "cut.jsonl").code == 130
    assert not (place.folder / "cut.jsonl").exists()
    place.ok(*wanted, "cut.jsonl")
    assert asked == [4, 2] and (place.folder / "cut.jsonl").read_text() == whole
    assert not list(place.folder.glob("*.part"))


@pytest.mark.parametrize("loss", ["all", "replies+structure"])
def test_a_prompt_ends_where_the_reply_begins_whatever_is_learned(place: Place, loss: str) -> None:
    """With loss: all, a conversation is one run of trained tokens: what is asked was its first token alone."""
    place.recipe(output_dir="fresh")
    place.ok("evaluate", "recipe.yaml", "--replies", "replies.jsonl")
    place.ok("evaluate", "recipe.yaml", f"data.loss={loss}", "--replies", "more.jsonl")
    asked = [[(row["prompt"], row["reference"].strip()) for row in map(json.loads, (place.folder / name).open())]
             for name in ("replies.jsonl", "more.jsonl")]  # fmt: skip
    assert len(asked[0]) == 4 and asked[1] == asked[0]


def test_the_samples_of_a_run_that_learns_everything_are_its_prompts(place: Place) -> None:
    place.recipe(data={"loss": "all"}, train={"max_steps": 1}, evaluate={"samples": 2, "metrics": ["exact_match"]})
    assert place.ok("train", "recipe.yaml").err.count("format messages") == 1
    rows = [json.loads(line) for line in (place.folder / "run/samples.jsonl").open()]
    assert all(row["prompt"].endswith("assistant\n") and "assistant" not in row["reference"] for row in rows), rows


def test_evaluate_by_role_and_by_place(place: Place, copied_run: Path) -> None:
    result = place.ok("evaluate", copied_run, "--detail")
    lines = [line.split() for line in result.out.splitlines()]
    at = {words[0]: words for words in lines if words}
    assert {"by_role", "user", "assistant", "markup", "by_place", "1", "2-4"} <= at.keys()
    from lorikeet import api

    found = api.evaluate(copied_run, detail=True)
    trained = sum(one["tokens"] for one in found["by_place"].values())
    mean = sum(one["tokens"] * one["loss"] for one in found["by_place"].values()) / trained
    assert mean == pytest.approx(found["eval_loss"], rel=1e-5)
    assert found["by_place"]["1"]["tokens"] == 4, "a reply of each conversation begins once"
    replies = found["by_role"]["assistant"]
    assert replies["tokens"] == trained and replies["loss"] == pytest.approx(found["eval_loss"], rel=1e-5)
    assert replies["accuracy"] == pytest.approx(found["token_accuracy"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "says", "facts"),
    [
        ({"train": {"metric_for_best_model": "rougeL"}}, "train.metric_for_best_model: no evaluation", ["[rouge]"]),
        ({"train": {"metric_for_best_model": "bleu"}}, "train.metric_for_best_model: no evaluation", ["perplexity"]),
        ({"train": {"load_best_model_at_end": True}}, "train.load_best_model_at_end: has no effect", ["eval_steps"]),
        (
            {"train": {"load_best_model_at_end": True, "eval_steps": 90}},
            "train.load_best_model_at_end: has no effect",
            ["train.eval_steps=90, and the run has"],
        ),
        ({"train": {"early_stopping_patience": 0}}, "train.early_stopping_patience", ["1"]),
        ({"train": {"early_stopping_patience": 2}}, "train.early_stopping_patience: has no effect", ["eval_steps"]),
        ({"train": {"early_stopping_threshold": 0.1}}, "train.early_stopping_threshold: has no effect", ["patience"]),
        ({"train": {"early_stopping_threshold": -1}}, "train.early_stopping_threshold", []),
        ({"evaluate": {"metrics": ["bleu"]}}, "evaluate.metrics", ["chrf"]),
        ({"evaluate": {"prompts": 3}}, "evaluate.prompts: has no effect", ["evaluate.metrics"]),
        ({"evaluate": {"metrics": ["ended"]}, "data": {"validation": "-"}}, "evaluate.metrics: has no effect", []),
        ({"evaluate": {"samples": 0, "sample_steps": 2}}, "evaluate.sample_steps: has no effect", ["samples"]),
        ({"evaluate": {"sample_steps": 0}}, "evaluate.sample_steps", []),
    ],
)
def test_bad_options(place: Place, changes: dict[str, Any], says: str, facts: list[str]) -> None:
    place.recipe(**changes)
    place.refused("train recipe.yaml", "RecipeError", says, *facts)


def test_replies_never_replace_the_data(place: Place) -> None:
    place.recipe()
    place.refused("evaluate recipe.yaml --replies tiny.jsonl", "OutputError", "tiny.jsonl")


def test_a_missing_package_is_said_before_anything_is_loaded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    place.recipe(evaluate={"metrics": ["chrf"]})
    place.refused("train recipe.yaml", "MissingExtra", "lorikeet-llm[eval]")
