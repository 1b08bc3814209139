"""What two runs are compared in: every figure that is computed, and none that is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lorikeet.verify.resume import compare, computed

TRAIN = {"kind": "train", "step": 1, "loss": 2.0, "learning_rate": 1e-3, "grad_norm": 0.5, "tokens": 64}
EVAL = {"kind": "eval", "step": 1, "loss": 2.0, "token_accuracy": 0.5, "exact_match": 0.25, "ended": 1.0}
MEASURED = {"seconds": 0.1, "tokens_per_second": 640.0, "peak_rss_bytes": 1, "rss_bytes": 1, "device_bytes": 1}


def run(folder: Path, **changed: Any) -> Path:
    (folder / "checkpoint-1").mkdir(parents=True)
    save_file({"a": torch.zeros(2)}, folder / "checkpoint-1/adapter_model.safetensors")
    rows = [{name: changed.get(name, value) for name, value in row.items()} for row in (TRAIN | MEASURED, EVAL)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_only_what_is_measured_is_left_out() -> None:
    assert computed(TRAIN | MEASURED) == TRAIN and computed(EVAL) == EVAL


def test_each_computed_figure_tells_two_runs_apart(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    assert {row.verdict for row in compare(whole, run(tmp_path / "same", seconds=9.0), 1)} == {"same"}
    for name in ("learning_rate", "grad_norm", "tokens", "exact_match", "token_accuracy"):
        found = compare(whole, run(tmp_path / name, **{name: 7}), 1)
        assert [row.verdict for row in found].count("DIFFERS") == 1, name
