"""Names in a recipe, and what is said of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorikeet.plan.first_recipe import duration, free_name, named, stem, this_machine
from lorikeet.plan.recipe_text import beside


def test_this_machine_can_multiply() -> None:
    machine = this_machine()
    assert machine.matmul_flops > 1e6 and machine.memory_bytes > 1 << 20
    assert machine.bytes_per_value in (2, 4) and 1 <= machine.usable_cores <= machine.cores


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/my notes.jsonl.gz", "my-notes"), ("https://x.org/a/b.json", "b"), ("hf:org/set", "set"), ("..", "first"),
        ("数据.json", "数据"), ("folder/", "folder"),
    ],
)  # fmt: skip
def test_a_run_is_named_after_its_data(source: str, name: str) -> None:
    assert stem(source) == name


def test_paths_hold_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inside").mkdir()
    (tmp_path / "a.json").write_text("[]")
    assert beside(Path("a.json"), Path("recipe.yaml")) == "a.json"
    assert beside(Path("a.json"), Path("inside/recipe.yaml")) == str(tmp_path / "a.json")
    assert named("smollm2-135m", Path("recipe.yaml")) == "smollm2-135m"
    assert free_name(Path("inside")) == "inside-2"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 s"), (59, "59 s"), (150, "2 min"), (9000, "2.5 h"), (864_000, "10 days")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
