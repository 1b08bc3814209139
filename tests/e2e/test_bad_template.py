# ruff: noqa: E501  a table of cases is read by its rows
"""Templates that do not suit the model or the rows: each is refused with what would, and nothing is written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import Place

TRAIN = "train recipe.yaml"
ASKED = {"role": "user", "content": "warm?"}
SAID = {"role": "assistant", "content": "yes"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {}}}
RESULT = {"role": "tool", "content": "21", "tool_call_id": "c1"}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}
TWICE = {**CALLED, "tool_calls": [CALL, CALL]}

# what is wrong, the template, how the message begins, what else it says (the tiny model has ChatML's tokens)
WRONG: list[tuple[str, Any, str, list[str]]] = [
    ("another model's tokens", "llama3", "TemplateError: data.template: llama3 does not suit this model", ["<|eot_id|>", "jinja chatml", "try      data.template=jinja"]),
    ("a version of other tokens", {"kind": "mistral", "version": "v7"}, "TemplateError: data.template: mistral does not suit this model", ["[SYSTEM_PROMPT]"]),
    ("a kind that is none", "lama3", "RecipeError: data.template: there is no kind 'lama3'", ["alpaca_legacy", "llama3"]),
    ("a version that is none", {"kind": "qwen", "version": "4"}, "RecipeError: data.template", ["2.5", "3"]),
    ("an option of another kind", {"kind": "raw", "system": "x"}, "RecipeError: data.template", ["system"]),
    ("an empty name", {"kind": "sharegpt", "user": ""}, "RecipeError: data.template", ["user"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "template", "error", "facts"), WRONG, ids=[case[0] for case in WRONG])
def test_templates(place: Place, name: str, template: Any, error: str, facts: list[str]) -> None:
    place.recipe(data={"template": template})
    place.refused(TRAIN, error, *facts)


@pytest.mark.parametrize(
    "template", ["{kind: qwen, version: 2}", "{kind: llama3, version: 3.1, allow_text_markers: true}"]
)
def test_a_version_that_yaml_reads_as_a_number(place: Place, template: str) -> None:
    place.recipe(data={"max_length": 512})
    place.ok("data", "show", "recipe.yaml", "-n", "1", f"data.template={template}")


# what is wrong, the template, the row, what the message says behind the row's place
ROWS: list[tuple[str, Any, dict[str, Any], list[str]]] = [
    ("tools without words", "alpaca", {"messages": [ASKED, CALLED, RESULT, SAID], "tools": [TOOL]}, ["no words for", "data.bad_rows=skip"]),
    ("tools alone", "zephyr", {"messages": [ASKED, SAID], "tools": [TOOL]}, ["no words for tools", "jinja llama3 mistral qwen react"]),
    ("two questions", "llama2", {"messages": [ASKED, ASKED, SAID]}, ["user and assistant have to alternate"]),
    ("two calls at once", "react", {"messages": [ASKED, TWICE, RESULT, SAID], "tools": [TOOL]}, ["acts once"]),
    ("a thought that is dropped", {"kind": "qwen", "version": "3", "thinking": False}, {"messages": [ASKED, THOUGHT]}, ["drops a part of message 1", "without the thoughts"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "template", "row", "facts"), ROWS, ids=[case[0] for case in ROWS])
def test_rows(place: Place, name: str, template: Any, row: dict[str, Any], facts: list[str]) -> None:
    (place.folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    place.recipe(data={"train": ["rows.jsonl"], "validation": ["tiny.jsonl"], "template": template, "max_length": 512})
    place.refused(TRAIN, f"TemplateError: {place.folder}/rows.jsonl:1: ", *facts)
