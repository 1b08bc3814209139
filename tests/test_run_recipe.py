from __future__ import annotations

from pathlib import Path

import pytest

from lorikeet.api.run_recipe import load_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    model = "{path: m, trust_remote_code: true, allow_code: true}"
    (tmp_path / "recipe.yaml").write_text(f"output_dir: r\nmodel: {model}\ndata: {{train: a.json}}\n")
    return tmp_path


def test_trust_is_not_said_by_the_folder_itself(run: Path) -> None:
    found = load_run(run).model
    assert not found.trust_remote_code and not found.allow_code


@pytest.mark.parametrize("option", ["allow_code", "trust_remote_code"])
def test_trust_is_said_by_a_person(run: Path, option: str) -> None:
    """And what is said of the folder is no part of the recipe, where it would have no effect."""
    for found in (load_run(run, [f"model.{option}=true"]), load_run(run, model={option: True})):
        assert found.model.trust_remote_code and not found.model.allow_code
    assert not load_run(run, [f"model.{option}=false"]).model.trust_remote_code
