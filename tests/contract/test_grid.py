"""Each kind of quantisation with each kind of adapter, as the folders list them: a run from end to end.

It trains, is evaluated and answers on the way, resumes, merges, and is asked again; and what happens on the way changes
no number of training (where libraries' layers lose their gradients: tests/parity/test_library_traps.py). What a kind
does not do, its contract says, and then the command has to say it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorikeet.adapters._contract import Adapter
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.base.yaml_lines import dump
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.cli.main import run_command
from lorikeet.quant._contract import Quant

GRID = [(quant, adapter) for quant in kinds("lorikeet.quant") for adapter in kinds("lorikeet.adapters")]
OPTIONS: dict[str, dict[str, Any]] = {"bias": {"norms": True}}  # where defaults are not enough
RATES: dict[str, float] = {"full": 0.002, "head": 0.01, "ia3": 0.3}  # other than 0.02
FLAT = {"ia3"}  # vectors alone do not make up the mind of a random network
OFTEN = {"before": True, "samples": 2}
NEVER = {"before": False, "samples": 0}
Make = Callable[..., Path]


@pytest.fixture
def make(tiny_model: Path, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """make(name, quant, adapter, evaluate, every): train in the folder `name`, which is returned."""
    monkeypatch.chdir(tmp_path)
    for name, part in (("train", rows[4:]), ("held_out", rows[:4])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))

    def train(name: str, quant: str, adapter: str, evaluate: dict[str, Any], every: int | None) -> Path:
        recipe = {
            "output_dir": name,
            "model": {"path": str(tiny_model), "dtype": "bfloat16", "device": "cpu", "threads": 1},
            "quant": {"kind": quant},
            "adapter": {"kind": adapter, **OPTIONS.get(adapter, {})},
            "data": {"train": ["train.jsonl"], "validation": ["held_out.jsonl"], "max_length": 128},
            "train": {
                "examples_per_step": 4, "max_steps": 6, "row_tokens": 256,
                "learning_rate": RATES.get(adapter, 0.02), "save_steps": 3, "eval_steps": every,
            },
            "evaluate": evaluate,
            "generate": {"max_new_tokens": 8, "temperature": 0.0},
        }  # fmt: skip
        Path(f"{name}.yaml").write_text(dump(recipe))
        assert run_command(["train", f"{name}.yaml"]) == (2 if refused(quant, adapter) else 0)
        return Path(name)

    return train


def kind_of(adapter: str) -> type[Adapter]:
    return kind_class("lorikeet.adapters", Adapter, adapter)


def refused(quant: str, adapter: str) -> str | None:
    """Why this kind of adapter does not train over this kind of weights, if it does not."""
    chosen = kind_of(adapter).model_validate(OPTIONS.get(adapter, {}))
    return chosen.quant_refusal(kind_class("lorikeet.quant", Quant, quant).model_validate({}))


def curve(run: Path) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm) of each training step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if line["kind"] == "train"]


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What went to stderr, as one line."""
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("quant, adapter", GRID)
def test_a_run_from_end_to_end(make: Make, quant: str, adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    if why := refused(quant, adapter):
        assert not make("refused", quant, adapter, NEVER, None).exists()
        assert why in said(capsys)
        assert run_command(["plan", "refused.yaml"]) == 2
        return
    watched, alone = make("watched", quant, adapter, OFTEN, 2), make("alone", quant, adapter, NEVER, None)
    assert curve(watched) == curve(alone), "evaluation and answers on the way change no number"
    assert weights(watched) == weights(alone)
    assert curve(watched)[-1][1] < curve(watched)[0][1]

    shutil.copytree(watched, "again")
    for done in ("checkpoint-6", "adapter"):
        shutil.rmtree(Path("again") / done)
    (Path("again") / "summary.json").unlink()
    assert run_command(["train", "watched.yaml", "output_dir=again"]) == 0
    assert curve(Path("again")) == curve(watched) and weights(Path("again")) == weights(watched)

    assert run_command(["predict", "watched", "held_out.jsonl", "--output", "replies.jsonl"]) == 0
    assert len(Path("replies.jsonl").read_text().splitlines()) == 4
    assert run_command(["evaluate", "watched"]) == 0
    assert run_command(["plan", "watched.yaml"]) == 0
    if why := kind_of(adapter).merge_refusal:
        capsys.readouterr()
        assert run_command(["merge", "watched", "merged"]) == 2
        assert why in said(capsys) and not Path("merged").exists()
        return
    if (
        run_command(["merge", "watched", "merged"]) != 0
    ):  # a random network that moved little: its likeliest token is luck
        certificate = json.loads(Path("merged/certificate.json").read_text())
        assert adapter in FLAT and certificate["broken"] == ["top1_agreement"], certificate
    merged = open_checkpoint(Path("merged"))
    assert all(merged.stored(name).startswith("BF") for name in merged.names())


@pytest.mark.parametrize("quant", [kind for kind in kinds("lorikeet.quant") if kind != "none"])
def test_no_run_goes_on_with_weights_kept_another_way(
    make: Make, quant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make("run", quant, "lora", NEVER, None)
    (Path("run") / "summary.json").unlink()
    shutil.rmtree(Path("run") / "checkpoint-6")
    capsys.readouterr()
    assert run_command(["train", "run.yaml", "quant.kind=none"]) == 2
    assert "quant" in capsys.readouterr().err
