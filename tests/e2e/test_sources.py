"""Folders and mixes from the command line: what trains, what is said, and what a run that goes on insists on."""

from __future__ import annotations

import json
import shutil
from typing import Any

from lorikeet.base.files import sha256_file

from .conftest import Place

TRAIN = ("train", "recipe.yaml")


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_folder_trains_and_validates_with_its_splits(place: Place, rows: list[dict[str, Any]]) -> None:
    (place.folder / "set").mkdir()
    (place.folder / "set" / "train.jsonl").write_text(lines(rows[:16]))
    (place.folder / "set" / "dev.jsonl").write_text(lines(rows[16:20]))
    place.recipe(data={"train": "set", "validation": "-"})
    told = place.ok(*TRAIN).err
    assert "split train: train.jsonl" in told and "(validation); data.validation=null leaves it unused" in told
    found = place.ok("evaluate", "run").out
    assert ["conversations", "4"] in [line.split() for line in found.splitlines()]
    place.refused("evaluate recipe.yaml data.validation=null", "RecipeError: data.validation: ")


def test_overrides_of_a_list_of_sources(place: Place) -> None:
    place.recipe(data={"train": [{"path": "tiny.jsonl"}]})
    for key in ("data.train.weight", "data.train.0.weight"):
        place.refused(f"train recipe.yaml {key}=3", "RecipeError: data.train: is a list, which is given as a whole")
    place.refused(
        ["train", "recipe.yaml", "data.train=[{path: tiny.jsonl, max_examples: 0}]"],
        "RecipeError: data.train.0.max_examples: out of range",
        ">= 1",
    )


def test_a_missing_validation_file_is_told_before_anything_is_read(place: Place) -> None:
    place.recipe(data={"validation": ["held.jsonl"]})
    place.refused("train recipe.yaml", "DataError: ", "held.jsonl: no such file")
    assert "format" not in place.run(*TRAIN).err


def test_a_mix_trains_and_goes_on_only_with_the_same_weights(place: Place, rows: list[dict[str, Any]]) -> None:
    for name, part in (("a", rows[:14]), ("b", rows[14:])):
        (place.folder / f"{name}.jsonl").write_text(lines(part))
    mix = [{"path": "a.jsonl", "weight": 3}, {"path": "b.jsonl", "weight": 1}]
    changes = {"train": {"max_steps": 7, "save_steps": 3, "save_total_limit": 9}, "evaluate": "-"}
    place.recipe(data={"train": mix, "validation": "-"}, **changes)
    told, run = place.ok(*TRAIN).err, place.folder / "run"
    sources = json.loads((run / "summary.json").read_text())["data"]["sources"]
    assert [one["weight"] for one in sources] == [3, 1] and [one["counts"]["rows"] for one in sources] == [14, 10]
    assert "weight 3, 0.964 passes an epoch; 14 rows" in told and "an epoch draws 18 examples" in told
    report = (run / "report.html").read_text()
    assert "<h2>Training data</h2>" in report and "/b.jsonl</td>" in report
    whole = sha256_file(run / "adapter" / "adapter_model.safetensors")
    for gone in ("adapter", "checkpoint-7", "checkpoint-6"):
        shutil.rmtree(run / gone)
    (run / "summary.json").unlink()
    mix[0]["weight"] = 2
    place.recipe(data={"train": mix, "validation": "-"}, **changes)
    place.refused("train recipe.yaml", "", "data")
    mix[0]["weight"] = 6  # 6 : 2 is 3 : 1
    mix[1]["weight"] = 2
    place.recipe(data={"train": mix, "validation": "-"}, **changes)
    assert "going on from run/checkpoint-3" in place.ok(*TRAIN).err
    assert sha256_file(run / "adapter" / "adapter_model.safetensors") == whole
