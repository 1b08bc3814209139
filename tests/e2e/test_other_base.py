"""An adapter on a base, or a quantisation, that it was not trained on: refused by every command that loads one, with
both sides shown, and used on request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorikeet import config
from lorikeet.cli.main import run_command

from .conftest import Place

COMMANDS: dict[str, list[str]] = {
    "predict": ["predict", "run", "tiny.jsonl", "generate.max_new_tokens=2", "--output", "replies.jsonl"],
    "chat": ["chat", "run"],
    "merge": ["merge", "run", "merged"],
    "keep": ["merge", "run", "merged", "--keep-adapter", "--into", "nf4"],
    "verify": ["verify", "merge", "dense", "--run", "run", "--prompts", "1", "--max-new-tokens", "2"],
    "evaluate": ["evaluate", "run"],
    "evaluate another": ["evaluate", "recipe.yaml", "--adapter", "run/adapter"],
}
NF4 = {"kind": "nf4"}


def changed(place: Place, **sections: Any) -> None:
    """Write other options into the run's recipe, and the same into one beside it."""
    recipe = config.load("run/recipe.yaml")
    config.save(recipe.model_copy(update={"output_dir": place.folder / "run"}), Path("run/recipe.yaml"))
    read = config.tree("run/recipe.yaml").values
    for section, value in sections.items():
        read[section] = {**read[section], **value} if section == "model" else value
    config.save(config.parse(read), Path("run/recipe.yaml"))
    config.save(config.parse(read | {"output_dir": "elsewhere"}), Path("recipe.yaml"))


@pytest.fixture(scope="session")
def merged(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run's merged folder. Read it only."""
    folder = tmp_path_factory.mktemp("merged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert run_command(["merge", str(finished), str(folder / "dense"), "--no-verify"]) == 0
    return folder / "dense"


@pytest.fixture
def run(copied_run: Path, merged: Path, place: Place) -> Path:
    """A finished run on dense weights, whose merged folder is `dense`."""
    changed(place)
    shutil.copytree(merged, "dense")
    return copied_run


@pytest.mark.parametrize("command", COMMANDS)
def test_weights_kept_in_another_way_are_refused(command: str, run: Path, place: Place) -> None:
    changed(place, quant=NF4)
    said = place.refused(COMMANDS[command], "CheckpointError: the adapter in ")
    given, allowed, tried = said.splitlines()[1:]
    assert "kept in another way" in said and "kind: nf4" in given and "kind: none" in allowed
    assert "--allow-other-base" in tried


@pytest.mark.parametrize("command", COMMANDS)
def test_another_base_is_refused_by_its_hash(
    command: str, run: Path, place: Place, make_model: Callable[..., Path]
) -> None:
    other = make_model(place.folder / "other", seed=1)
    known = json.loads(Path("run/adapter/lorikeet.json").read_text())["base_fingerprint"]
    changed(place, model={"path": str(other)})
    said = place.refused(COMMANDS[command], "CheckpointError: the adapter in ", "another base model", known[:16])
    given = said.splitlines()[1]
    assert str(other) in given and "sha256" in given and known[:16] not in given


def test_another_size_of_blocks_is_another_quantisation(place: Place) -> None:
    place.ok("train", place.recipe(quant=NF4, evaluate={"samples": 0}, train={"max_steps": 1}))
    place.ok("merge", "run", "full", "--base", "full", "--no-verify")  # the update goes into the checkpoint's weights
    place.ok("predict", "run/adapter", "tiny.jsonl", "generate.max_new_tokens=1", "-o", "first.jsonl")
    changed(place, quant={"kind": "nf4", "block_size": 32})
    words = ["predict", "run", "tiny.jsonl", "--output", "replies.jsonl"]
    said = place.refused(words, "CheckpointError: the adapter in ", "block_size: 32", "block_size: 64")
    assert "allowed  quant={" in said
    place.refused(["merge", "run", "again", "--base", "full"], "CheckpointError: the adapter in ", "block_size: 64")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("chat", "keep")])
def test_it_is_used_all_the_same_on_request(command: str, run: Path, place: Place) -> None:
    changed(place, quant=NF4)
    limits = ["--max-mean-kl", "9", "--max-loss-increase", "9", "--min-top1", "0"] if command == "verify" else []
    done = place.run(*COMMANDS[command], *limits, "--allow-other-base")
    said = " ".join(done.err.split())
    assert done.code == 0, done.err
    assert "kept in another way: quant={" in said and "Used all the same, on quant={" in said


def test_what_was_merged_names_both_sides(run: Path, place: Place) -> None:
    words = ["merge", "run", "merged", "--into", "nf4", "--no-verify"]
    changed(place, quant=NF4)
    place.ok(*words, "--allow-other-base")
    said = json.loads(Path("merged/lorikeet.json").read_text())["merged"]
    assert said["trained"]["kind"] == "nf4" and said["adapter_trained_on"]["quant"]["kind"] == "none"
    assert json.loads(Path("dense/lorikeet.json").read_text())["merged"]["adapter_trained_on"] is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("quant", {"kind": "gptq", "bits": 5}),
        ("quant", {"kind": "nf9"}),
        ("quant", 4),
        ("template", {"kind": "chatml", "colour": 3}),
        ("template", "no such template"),
    ],
)
def test_a_damaged_lorikeet_json_is_one_clear_error(name: str, value: Any, run: Path, place: Place) -> None:
    file = Path("run/adapter/lorikeet.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    words = ["predict", "run/adapter", "tiny.jsonl", "--output", "replies.jsonl"]
    place.refused(words, "CheckpointError: the adapter in ", "is damaged", f"lorikeet.json: {name} is ")
