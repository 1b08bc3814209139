"""Each kind of adapter over each kind of quantisation, stopped and gone on with, under what else changes a step.

Not only the adapter: the optimizer, every loss and gradient norm, what was seen, and the evaluations on the way are the
same in every bit. Each kind once in the default suite, the product on request.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contract.test_grid import GRID, OPTIONS, RATES, refused, said
from lorikeet.base.kinds import kinds
from lorikeet.base.yaml_lines import dump
from lorikeet.cli.main import run_command
from lorikeet.verify.resume import compare

WAYS: dict[str, dict[str, Any]] = {
    # several rows a step, prefixes shared, layers computed twice, evaluation in between
    "in rows": {"row_tokens": 128, "gradient_checkpointing": True, "eval_steps": 2},
    # everything that is drawn, none shared
    "drawn": {"row_tokens": 256, "neftune_noise_alpha": 5.0, "attention_dropout": 0.1, "label_smoothing_factor": 0.1},
}
NO_ROOM_FOR_NOISE = "noise is drawn for each of them apart"
TRAINED = [(quant, adapter) for quant, adapter in GRID if not refused(quant, adapter)]
ONCE = {adapter: quant for quant, adapter in TRAINED if quant == "none"}
CASES = [
    pytest.param(quant, adapter, way, marks=[] if ONCE[adapter] == quant and way == "in rows" else [pytest.mark.slow])
    for quant, adapter in TRAINED
    for way in WAYS
]


@pytest.mark.parametrize("quant, adapter, way", CASES)
def test_stopped_and_gone_on_with_is_the_same_in_every_bit(
    tiny_model: Path, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], quant: str, adapter: str, way: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[4:]))
    Path("held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    drawn = {"lora_dropout": 0.2} if way == "drawn" and adapter == "lora" else {}
    # where the head trains alone, layers keep nothing
    kept = {"gradient_checkpointing": False} if adapter == "head" and way == "in rows" else {}
    recipe = {
        "output_dir": "whole",
        "model": {"path": str(tiny_model), "dtype": "bfloat16", "device": "cpu", "threads": 1},
        "quant": {"kind": quant},
        "adapter": {"kind": adapter, **OPTIONS.get(adapter, {}), **drawn},
        "data": {"train": ["train.jsonl"], "validation": ["held_out.jsonl"], "max_length": 128},
        "train": {
            "examples_per_step": 4, "max_steps": 5, "learning_rate": RATES.get(adapter, 0.02), "save_steps": 2,
            "save_total_limit": 9, **WAYS[way], **kept,
        },
        "evaluate": {"before": True, "samples": 0},
    }  # fmt: skip
    Path("recipe.yaml").write_text(dump(recipe))
    code = run_command(["train", "recipe.yaml"])
    if code == 2 and NO_ROOM_FOR_NOISE in (why := said(capsys)):
        pytest.skip(why)
    assert code == 0
    assert run_command(["train", "recipe.yaml", "output_dir=stopped", "--stop-after", "3"]) == 3
    assert run_command(["train", "recipe.yaml", "output_dir=stopped"]) == 0
    found = compare(Path("whole"), Path("stopped"), 5)
    assert {row.what for row in found} >= {"adapter_model", "optimizer", "the loss", "the tokens it saw"}
    assert [f"{row.what}: {row.difference}" for row in found if row.difference] == []
    name = "adapter/adapter_model.safetensors"
    assert (Path("whole") / name).read_bytes() == (Path("stopped") / name).read_bytes()


def test_every_kind_of_adapter_is_in_the_default_suite() -> None:
    assert set(ONCE) == set(kinds("lorikeet.adapters"))
