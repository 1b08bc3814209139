"""Limits from the command line: a run that meets one ends well, says which, and goes on with a larger one."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorikeet.train.state import checkpoints

from .conftest import Place

WRONG = [("time", "soon"), ("memory", "much"), ("disk", "-1GiB"), ("tokens", "1e6"), ("time", "0")]


def adapter(place: Place, run: str) -> dict[str, torch.Tensor]:
    return load_file(place.folder / run / "adapter" / "adapter_model.safetensors")


def test_a_token_limit_ends_a_run_that_a_larger_one_goes_on_with(place: Place) -> None:
    recipe = place.recipe(train={"max_steps": 6})
    place.ok("train", recipe, "output_dir=whole")
    tokens = json.loads((place.folder / "whole" / "summary.json").read_text())["tokens"]
    ended = place.run("train", recipe, f"limits.tokens={tokens // 2}")
    assert ended.code == 3, ended.err
    said: dict[str, Any] = json.loads((place.folder / "run" / "summary.json").read_text())
    assert 0 < said["steps"] < 6 and said["tokens"] <= tokens // 2
    assert said["ended_by"] == f"limits.tokens ({tokens // 2})" and "limits.tokens=null" in said["go_on"]
    last = ended.err[ended.err.index("Interrupted") :]
    assert f"limits.tokens ({tokens // 2}) ended the run after step {said['steps']} of 6" in last
    assert "the adapter is usable" in last and "limits.tokens=null" in last
    assert checkpoints(place.folder / "run") == [said["steps"]]
    assert "loss" in place.ok("evaluate", "run").out, "the adapter loads"
    watched = place.run("runs", "watch", "run")
    assert watched.code == 3 and "limits.tokens=null goes on without it" in watched.err
    assert "runs resume" not in watched.err, "by its own recipe it would end at once"
    place.ok("train", recipe, f"limits.tokens={tokens}")
    whole, gone_on = adapter(place, "whole"), adapter(place, "run")
    assert all(torch.equal(whole[name], gone_on[name]) for name in whole)
    assert "ended_by" not in json.loads((place.folder / "run" / "summary.json").read_text())
    place.refused(f"train {recipe}", "OutputError: the run in run is finished")


def test_checkpoints_that_never_come_need_no_room(place: Place) -> None:
    recipe = place.recipe(train={"max_steps": 2, "save_steps": 1, "save_total_limit": 10**12})
    place.ok("train", recipe, "limits.disk=1GiB")
    assert checkpoints(place.folder / "run") == [1, 2]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_what_is_no_amount_is_refused(place: Place, name: str, value: str) -> None:
    place.recipe(limits={name: value})
    place.refused("train recipe.yaml", f"RecipeError: limits.{name}", place.line(f" {name}: "), "no amount")


@pytest.mark.parametrize(
    ("override", "error", "fact"),
    [
        ("limits.memory=20MiB", "RecipeError: limits.memory: less than the model takes", "more than"),
        ("limits.disk=2MiB", "OutputError: limits.disk: too little for 2 checkpoints", "at least"),
        ("limits.speed=9", "RecipeError: limits.speed", "time memory disk tokens"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(place: Place, override: str, error: str, fact: str) -> None:
    place.refused(["train", str(place.recipe()), override], error, fact)


def test_the_costliest_row_is_told_with_its_peak(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorikeet.plan.steps.LOOK_SECONDS", float("inf"))  # however long a busy machine looks
    recipe = place.recipe(train={"rehearsal": True})
    said = place.ok("train", recipe).err
    assert "memory: " in said and "with the costliest row of 4 planned steps (step " in said
    rows = [json.loads(line) for line in (place.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["kind"] == "memory"]
    peak = max(row["peak_rss_bytes"] for row in rows if row["kind"] == "train")
    assert row["certified_peak_bytes"] > 0.9 * peak
