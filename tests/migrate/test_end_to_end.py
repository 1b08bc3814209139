"""An imported recipe trains as it stands, on the rows that the other system's file names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorikeet.cli.main import run_command

QUESTIONS = [f"What is {number} and {number}?" for number in range(12)]
GREETINGS = [{"instruction": asked, "input": "", "output": f"It is {asked[8:10]}"} for asked in QUESTIONS]
CHATS = [
    {"role_text": "Be brief.", "dialogue": [{"from": "customer", "value": asked}, {"from": "agent", "value": "Yes."}]}
    for asked in QUESTIONS
]
TURNS = [{"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": "No."}]} for asked in QUESTIONS]


@pytest.fixture
def data(place: Path) -> Path:
    folder = place / "data"
    (folder / "greetings.json").write_text(json.dumps(GREETINGS))
    (folder / "alpaca.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GREETINGS))
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GREETINGS[:3]))
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    (folder / "chats.json").write_text(json.dumps(TURNS))
    (folder / "train.json").write_text(json.dumps([{"input": asked, "output": "Maybe."} for asked in QUESTIONS]))
    (folder / "dev.json").write_text(json.dumps([{"input": QUESTIONS[0], "output": "Maybe."}]))
    return place


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("llamafactory_lora.yaml", "Yes."),
        ("axolotl_alpaca.yml", "### Instruction:"),
        ("alpaca_lora.sh", "### Response:"),
        ("vicuna_deepspeed.sh", "USER:"),
        ("ptuning.sh", "Maybe."),
    ],
)
def test_it_trains(source: str, shown: str, data: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = [f"model.path={tiny_model}", "model.dtype=float32", "model.threads=1", "data.max_length=380"]
    few = ["train.max_steps=1", "train.examples_per_step=4", "evaluate.samples=0", "output_dir=run"]
    assert run_command(["import", source, *tiny, *few]) == 0
    listed = capsys.readouterr().out
    assert "missing" not in listed, listed
    assert run_command(["data", "show", "recipe.yaml", "-n", "24"]) == 0
    assert shown in capsys.readouterr().out
    assert run_command(["train", "recipe.yaml"]) == 0, capsys.readouterr().err
    assert (data / "run" / "adapter").is_dir()
