"""The benchmark runs on a tiny model and counts what it says it counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_speed.py"


def test_two_steps_on_a_tiny_model(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--model", str(tiny_model), "--data", str(tiny_data), "--json", str(out)]
    command += ["--steps", "2", "--dtype", "float32", "--threads", "1", "--row-tokens", "256", "--checkpointing"]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr
    found = json.loads(out.read_text())
    assert (found["steps"], found["conversations"], found["row_tokens"]) == (2, 24, 256)  # 16 and 8: one epoch
    assert 0 < found["tokens_computed"] < found["tokens"], "half the conversations begin alike"
    assert found["tokens_per_second"] * found["train_seconds"] == pytest.approx(found["tokens"])
    assert 0 < found["model_flop_utilisation"] < 1
    assert found["gradient_checkpointing"] is True
    assert "tokens_per_second" in ran.stdout
