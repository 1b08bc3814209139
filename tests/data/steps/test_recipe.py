"""The JSON schema of a chain's file: it knows what `data clean` reads, short forms and all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorikeet.base import yaml_lines
from lorikeet.base.kinds import kinds
from lorikeet.cli.main import run_command
from lorikeet.data.steps import _recipe

EXAMPLE = Path(__file__).parents[3] / "examples" / "sharegpt_clean.yaml"


def test_the_schema_knows_each_step_in_each_form(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(["schema", "--clean"])
    schema = json.loads(capsys.readouterr().out)
    *written_out, names, own, short = schema["properties"]["steps"]["anyOf"][0]["items"]["anyOf"]
    assert names["enum"] == sorted(short["properties"]) == kinds(_recipe.PACKAGE)
    assert len(written_out) == len(names["enum"]) + 1 and own["pattern"] == r"\.py$"
    blocklist = short["properties"]["blocklist"]["anyOf"][0]
    assert "kind" not in blocklist["properties"] and "kind" in schema["$defs"]["Blocklist"]["required"]
    assert set(yaml_lines.read(EXAMPLE).values) <= set(schema["properties"]) and schema["required"] == ["steps"]


def test_the_page_of_options_is_of_recipes_and_chains_alike(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["schema", "--clean", "--markdown"]) == 2
    assert "one of them" in capsys.readouterr().err


VALID: list[Any] = ["roles", "roles dedupe", ["roles", {"dedupe": {"near": 0.8}}, {"merge": None}, "mine.py"]]
INVALID: list[Any] = [["rols"], [{"dedupe": {"nera": 0.8}}], [{"dedupe": {}, "roles": {}}], [{"near": 0.8}], []]


@pytest.mark.parametrize("steps", VALID + INVALID)
def test_the_schema_accepts_what_is_read_and_nothing_else(steps: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(_recipe.json_schema())
    assert validator.is_valid({"steps": steps}) == (steps in VALID)
    assert validator.is_valid(yaml_lines.read(EXAMPLE).values)
