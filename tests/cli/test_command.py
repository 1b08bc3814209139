"""What all commands share: which words are files, and whose line an error names."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorikeet.base.errors import CheckpointError, DataError, LorikeetError, ModelError, RecipeError
from lorikeet.cli._command import loaded, print_values, split_options

RECIPE = """\
output_dir: runs/x
model: {path: gone, device: cuda:9}
data:
  train: [a.json, b.json]
  validation: 3
train: {adam_beta1: 0.5}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RecipeError("train.adam_beta1: has no effect", given=0.5), 6),  # a name with a digit
        (ModelError("model.device: no device", given="cuda:9"), 2),  # any kind of error may be about an option
        (DataError("data.validation: leaves nothing to train on", given="3 of 3"), 5),
        (CheckpointError("no model 'gone'", given="gone"), 2),  # by its value
        (DataError("b.json: no such file", given=Path("b.json")), 4),
    ],
)
def test_an_error_names_the_line_of_its_option(recipe: Path, error: LorikeetError, line: int) -> None:
    with pytest.raises(type(error)) as raised, loaded(recipe, []):
        raise error
    assert str(raised.value.given).endswith(f"   ({recipe}:{line})")
    assert (raised.value.what, raised.value.exit_code) == (error.what, error.exit_code)


@pytest.mark.parametrize(
    "error",
    [
        DataError("a.json:3: broken JSON", given="{"),  # a file's line, not an option's
        RecipeError("adapter.r: too big", given=4),  # not written in this recipe
        CheckpointError("no model 'x'", given="x"),
        RecipeError("train.adam_beta1: has no effect", given="here (recipe.yaml:6)   ({place})"),  # said already
    ],
)
def test_other_errors_stay_as_they_are(recipe: Path, error: LorikeetError) -> None:
    error.given = str(error.given).replace("{place}", f"{recipe}:6")
    with pytest.raises(type(error)) as raised, loaded(recipe, []):
        raise error
    assert raised.value.given == error.given


def test_an_override_is_named_as_the_place(recipe: Path) -> None:
    with pytest.raises(ModelError) as raised, loaded(recipe, ["model.device=cuda:3"]):
        raise ModelError("model.device: no device", given="cuda:3")
    assert raised.value.given == "cuda:3   (the command line)"


def test_files_and_options_are_told_apart() -> None:
    words = ["a.jsonl", "generate.seed=1", "b=c.json", "generate.csv", "generate.top_k=3"]
    assert split_options(words) == (
        [Path("a.jsonl"), Path("b=c.json"), Path("generate.csv")],
        ["generate.seed=1", "generate.top_k=3"],
    )


@pytest.mark.parametrize("word", ["quant=int8", "quant.kind=int8", "adapter.kind=lora", "data.max_length=3"])
def test_options_that_a_command_does_not_read_are_no_files(word: str) -> None:
    with pytest.raises(RecipeError, match="is read here"):
        split_options(["a.jsonl", word])


def test_values_stand_in_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    print_values({"loss": 1.23456789, "seconds_in_all": 2, "curve": [1, 2], "data": {"rows": 3}})
    assert capsys.readouterr().out == "loss            1.23457\nseconds_in_all  2\n"
