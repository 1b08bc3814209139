"""Folders that are in use, full, foreign, finished or damaged: nothing in them is touched."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from .conftest import Place

TRAIN = "train recipe.yaml"
Write = Callable[[str, "str | bytes"], Path]
HOLD = """
import fcntl, pathlib, sys
path = pathlib.Path("run"); path.mkdir(exist_ok=True)
file = (path / ".lock").open("w"); fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True); sys.stdin.read()
"""


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with 5 MiB left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1 << 40, used=0, free=5 << 20))


@pytest.fixture
def unfinished(copied_run: Path) -> Path:
    """The copied run as if it had been stopped after its second step."""
    shutil.rmtree(copied_run / "checkpoint-4")
    shutil.rmtree(copied_run / "adapter")
    (copied_run / "summary.json").unlink()
    return copied_run


def test_held_by_another_process(place: Place) -> None:
    place.recipe()
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        try:
            place.refused(TRAIN, "OutputError: another run is writing to run", "process", "another output_dir, or wait")
            place.refused(f"{TRAIN} --overwrite", "OutputError: another run is writing to run")
        finally:
            holder.communicate()
    place.ok(*TRAIN.split())


def test_a_run_that_names_its_process(place: Place) -> None:
    place.recipe()
    (place.folder / "run").mkdir()
    with (place.folder / "run/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(str(os.getpid()))
        lock.flush()
        place.refused(TRAIN, "OutputError: another run is writing to run", f"given    process {os.getpid()}")


def test_no_disk_space_at_the_start(place: Place, full_disk: None) -> None:
    place.recipe()
    place.refused(TRAIN, "OutputError: not enough disk space", "0.00 GiB free", "at least 0.25 GiB")


def test_no_disk_space_to_merge(place: Place, finished: Path, full_disk: None) -> None:
    place.refused(["merge", str(finished), "merged"], "OutputError: not enough disk space for the merged model")


def test_a_file(place: Place, write: Write) -> None:
    write("run", "hello")
    place.recipe()
    place.refused(TRAIN, "OutputError: output_dir: is a file", place.line("output_dir"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_one_may_not_write(place: Place) -> None:
    (place.folder / "run").mkdir(mode=0o500)
    place.recipe()
    place.refused(TRAIN, "OutputError: ")


def test_a_folder_below_a_file(place: Place) -> None:
    place.recipe(output_dir="tiny.jsonl/run")
    place.refused(TRAIN, "OutputError: ", "tiny.jsonl")


@pytest.mark.parametrize("options", ["", " --overwrite"])
def test_a_folder_with_other_things(place: Place, write: Write, options: str) -> None:
    write("run/thesis.tex", "years of work")
    place.recipe()
    place.refused(
        TRAIN + options,
        "OutputError: output_dir: holds files that are not a run's",
        "thesis.tex",
        place.line("output_dir"),
    )


@pytest.mark.parametrize("options", ["", " --overwrite"])
def test_other_things_beside_a_recipe(place: Place, write: Write, options: str) -> None:
    """The folder of one's own recipe is not a run's folder."""
    write("run/recipe.yaml", "output_dir: .")
    write("run/thesis.tex", "years of work")
    place.recipe()
    place.refused(TRAIN + options, "OutputError: output_dir: holds files that are not a run's", "thesis.tex")


def test_a_finished_run(place: Place, copied_run: Path) -> None:
    place.recipe()
    place.refused(TRAIN, "OutputError: the run in run is finished", "--overwrite to start anew")
    place.ok(*TRAIN.split(), "--overwrite", "train.max_steps=1")
    assert [path.name for path in copied_run.glob("checkpoint-*")] == ["checkpoint-1"]


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        ("train.learning_rate=0.02", ["train", "0.02", "0.01"]),
        ("adapter.r=8", ["adapter"]),
        ("model.dtype=bfloat16", ["dtype", "bfloat16"]),
        ("data.max_length=40", ["data"]),
    ],
)
def test_going_on_with_another_recipe(place: Place, unfinished: Path, override: str, facts: list[str]) -> None:
    place.recipe(train={"save_steps": 2})
    place.refused(f"{TRAIN} {override}", "RecipeError: ", "checkpoint-2", "lorikeet train --from", *facts)


def test_going_on_with_other_data(place: Place, unfinished: Path) -> None:
    place.recipe(train={"save_steps": 2})
    with (place.folder / "tiny.jsonl").open("a") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}))
    place.refused(TRAIN, "RecipeError: data, data.validation differ from what checkpoint-2 was trained with")


def test_going_on_with_another_base(place: Place, unfinished: Path, make_model: Callable[..., Path]) -> None:
    make_model(place.folder / "other", seed=1)
    place.recipe(train={"save_steps": 2}, model={"path": "other"})
    place.refused(TRAIN, "RecipeError: base", "checkpoint-2")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors", "state.json", "complete.json"])
def test_damaged_checkpoints(place: Place, unfinished: Path, name: str) -> None:
    file = unfinished / "checkpoint-2" / name
    file.write_bytes(file.read_bytes()[:-9])
    place.recipe(train={"save_steps": 2})
    place.refused(TRAIN, "CheckpointError: no checkpoint in run is whole", "--overwrite")
    place.refused("chat run", "CheckpointError: ", "run")


def test_a_run_without_an_adapter_yet(place: Place, unfinished: Path) -> None:
    shutil.rmtree(unfinished / "checkpoint-2")
    place.refused(
        "merge run merged", "CheckpointError: the run in run has no adapter yet", "lorikeet train run/recipe.yaml"
    )


def test_merging_into_a_folder_that_is_there(place: Place, finished: Path, write: Write) -> None:
    write("merged/thesis.tex", "years of work")
    place.refused(["merge", str(finished), "merged"], "OutputError: merged exists already", "another folder")
    place.refused(["merge", str(finished), "tiny.jsonl"], "OutputError: tiny.jsonl exists already")


def test_predicting_into_a_folder(place: Place, finished: Path) -> None:
    (place.folder / "replies").mkdir()
    place.refused(
        ["predict", str(finished), "tiny.jsonl", "-o", "replies"], "OutputError: replies is a folder", "replies.jsonl"
    )


def test_predicting_over_the_prompts(place: Place, finished: Path) -> None:
    place.refused(
        ["predict", str(finished), "tiny.jsonl", "-o", "tiny.jsonl"],
        "OutputError: tiny.jsonl is one of the files of prompts",
    )


@pytest.mark.parametrize("text", ["years of work", '{"messages": []}', "[1]", "\xff"])
def test_predicting_over_a_file_that_holds_no_replies(place: Place, finished: Path, write: Write, text: str) -> None:
    write("thesis.jsonl", text)
    place.refused(
        ["predict", str(finished), "tiny.jsonl", "-o", "thesis.jsonl"],
        "OutputError: thesis.jsonl exists and holds no replies",
        "another --output",
    )
    assert (place.folder / "thesis.jsonl").read_text() == text


def test_predicting_again_replaces_the_replies(place: Place, finished: Path, write: Write) -> None:
    write("replies.jsonl", "")
    words = ("predict", finished, "tiny.jsonl", "-o", "replies.jsonl", "generate.max_new_tokens=1")
    for _ in range(2):
        assert place.run(*words).code == 0
        assert "reply" in (place.folder / "replies.jsonl").read_text()


def test_predicting_from_nothing(place: Place, finished: Path) -> None:
    place.refused(["predict", str(finished), "nope.jsonl", "-o", "out.jsonl"], "DataError: nope.jsonl: no such file")
    place.refused(
        ["predict", str(finished), "generate.temperature=1", "-o", "out.jsonl"], "DataError: no file with prompts"
    )
    (place.folder / "words.csv").write_text("colour\nblue\n")
    place.refused(
        ["predict", str(finished), "words.csv", "-o", "out.jsonl"],
        "DataError: words.csv: no format recognises these columns",
        "colour",
    )


def test_predicting_from_a_prompt_that_is_too_long(place: Place, finished: Path) -> None:
    row = {"messages": [{"role": "user", "content": "word " * 600}]}
    (place.folder / "long.jsonl").write_text(json.dumps(row) + "\n")
    place.refused(
        ["predict", str(finished), "long.jsonl", "-o", "out.jsonl"],
        "DataError: long.jsonl:1: the prompt fills",
        "512",
        "3013 tokens",
    )


def test_a_broken_recipe_in_a_run(place: Place, copied_run: Path) -> None:
    (copied_run / "recipe.yaml").write_text("output_dir: [")
    place.refused("evaluate run", "RecipeError: this is not YAML", "run/recipe.yaml:1")
    place.refused("chat run", "RecipeError: this is not YAML", "run/recipe.yaml:1")
