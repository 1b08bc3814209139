"""The recipe of every fixture, word for word: LORIKEET_REGOLD=1 writes them anew, for eyes to check the difference."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorikeet import config
from lorikeet.migrate import _recipe

from .conftest import FIXTURES

GOLDEN = Path(__file__).parent / "golden"
SOURCES = [
    "llamafactory_lora.yaml",
    "llamafactory_freeze.yaml",
    "axolotl_qlora.yml",
    "axolotl_alpaca.yml",
    "axolotl_lora_plus.yml",
    "axolotl_unfrozen.yml",
    "trl.yaml",
    "alpaca_lora.sh",
    "qwen_lora.sh",
    "vicuna_deepspeed.sh",
    "ptuning.sh",
    "data/dataset_info.json",
]


def test_every_fixture_is_a_source() -> None:
    files = {path.relative_to(FIXTURES).as_posix() for path in FIXTURES.rglob("*") if path.is_file()}
    assert files == set(SOURCES)


@pytest.mark.parametrize("source", SOURCES)
def test_golden(source: str, place: Path) -> None:
    made = _recipe.translated(Path(source))
    golden = GOLDEN / f"{Path(source).stem}.yaml"
    if os.environ.get("LORIKEET_REGOLD"):
        golden.write_text(made.text)
    assert made.text == golden.read_text()
    _recipe.write(made, place / "out" / "recipe.yaml")
    loaded = config.load(place / "out" / "recipe.yaml")
    config.check_effects(loaded)
    assert loaded == made.recipe
