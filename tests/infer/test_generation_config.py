"""generation_config.json to options of `generate`, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorikeet.infer.generation_config import FILE, read, written


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ({"eos_token_id": 2}, {}),
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
         {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}),
        ({"do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.9}, {"temperature": 0.0}),
        ({"temperature": 0.6, "top_k": -1, "min_p": None}, {"temperature": 0.6, "top_k": 0}),
        ({"max_new_tokens": 64, "max_length": 20, "typical_p": 0.3}, {"max_new_tokens": 64}),
        ({"temperature": "hot", "top_p": 0, "top_k": 5}, {"top_k": 5}),
    ],
)  # fmt: skip
def test_what_the_file_says_of_sampling_is_read(said: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(said))
    assert read(tmp_path) == options


def test_a_value_that_cannot_be_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / FILE).write_text('{"temperature": -1}')
    assert read(tmp_path) == {}
    assert "temperature is left out: -1" in " ".join(capsys.readouterr().err.split())


def test_no_file_says_nothing(tmp_path: Path) -> None:
    assert read(tmp_path) == {} == read(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.0, "repetition_penalty": 1.1},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.05},
        {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
        {"max_new_tokens": 5},
    ],
)
def test_what_is_written_is_read_again_and_is_whole_for_transformers(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(written({**options, "stop": ["x"], "presence_penalty": 1.0})))
    assert read(tmp_path) == options
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)  # which raises for settings that contradict each other
    assert read(tmp_path).items() >= options.items()
