"""Resumed = uninterrupted, bit for bit: losses, adapter and optimizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorikeet.base.errors import CheckpointError, RecipeError
from lorikeet.train.loop import train
from lorikeet.train.optim import Stepper
from lorikeet.train.options import TrainOptions
from lorikeet.train.state import latest_checkpoint
from train.runs import OPTIONS, go_on, losses, run_in

LORA = {"plain": {}, "dropout": {"lora_dropout": 0.3}}


def same_files(left: Path, right: Path) -> None:
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        a, b = load_file(left / name), load_file(right / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        assert len(a) > 20


@pytest.mark.parametrize("lora", LORA.values(), ids=LORA.keys())
@pytest.mark.parametrize("changed", [{}, {"gradient_checkpointing": True}, {"optim": "sgd", "learning_rate": 0.5}])
def test_resumed_equals_uninterrupted_bitwise(lora: dict[str, Any], changed: dict[str, Any], tmp_path: Path) -> None:
    options = TrainOptions(**OPTIONS | changed, save_steps=3, save_total_limit=5)
    whole = train(run_in(tmp_path / "whole", lora=lora), options)
    # the run that was killed: what it leaves is its first checkpoint and metrics beyond it
    killed = tmp_path / "killed"
    killed.mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", killed / "checkpoint-3")
    shutil.copy(tmp_path / "whole" / "metrics.jsonl", killed)
    torch.manual_seed(123)
    resumed = go_on(run_in(killed, lora=lora), options)
    assert losses(killed) == losses(tmp_path / "whole") and len(losses(killed)) == 7
    assert losses(killed, "eval") == losses(tmp_path / "whole", "eval")
    same_adapter = (killed / "checkpoint-7", tmp_path / "whole" / "checkpoint-7")
    if "optim" not in changed:
        same_files(*same_adapter)
    left, right = (load_file(folder / "adapter_model.safetensors") for folder in same_adapter)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert resumed.evaluation == whole.evaluation
    assert (resumed.done.tokens, resumed.done.loss_sum) == (whole.done.tokens, whole.done.loss_sum)
    assert resumed.done.eval_before == whole.done.eval_before


@pytest.mark.parametrize(
    "changed",
    [
        {"neftune_noise_alpha": 5.0, "embedding_dropout": 0.2, "attention_dropout": 0.2},
        {"label_smoothing_factor": 0.1, "layerwise_lr_decay": 0.5, "lr_multipliers": {"lora_B": 4.0}},
        {"lr_scheduler_type": {"kind": "warmup_stable_decay", "num_decay_steps": 2}},
        {"lr_scheduler_type": {"kind": "cosine_with_restarts", "num_cycles": 2}},
    ],
)
def test_resumed_equals_uninterrupted_with_each_option(changed: dict[str, Any], tmp_path: Path) -> None:
    options = TrainOptions(**OPTIONS | changed, save_steps=3, save_total_limit=5)
    train(run_in(tmp_path / "whole", share=False), options)
    killed = tmp_path / "killed"
    killed.mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", killed / "checkpoint-3")
    shutil.copy(tmp_path / "whole" / "metrics.jsonl", killed)
    torch.manual_seed(321)
    go_on(run_in(killed, share=False), options)
    assert losses(killed) == losses(tmp_path / "whole") and len(losses(killed)) == 7
    same_files(killed / "checkpoint-7", tmp_path / "whole" / "checkpoint-7")
    train(run_in(tmp_path / "plain", share=False), TrainOptions(**OPTIONS, save_steps=3))
    assert losses(tmp_path / "plain") != losses(killed)  # the option did something


def test_a_damaged_checkpoint_is_skipped_and_the_run_goes_on_from_the_one_before(tmp_path: Path) -> None:
    options = TrainOptions(**OPTIONS, save_steps=2, save_total_limit=9)
    train(run_in(tmp_path / "whole"), options)
    shutil.copytree(tmp_path / "whole", tmp_path / "hurt")
    for name in ("checkpoint-6", "checkpoint-7"):
        file = tmp_path / "hurt" / name / "adapter_model.safetensors"
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    assert latest_checkpoint(tmp_path / "hurt") == tmp_path / "hurt" / "checkpoint-4"
    go_on(run_in(tmp_path / "hurt"), options)
    same_files(tmp_path / "hurt" / "checkpoint-7", tmp_path / "whole" / "checkpoint-7")
    assert losses(tmp_path / "hurt") == losses(tmp_path / "whole")


def test_going_on_with_something_else_is_refused_with_both_sides(tmp_path: Path) -> None:
    options = TrainOptions(**OPTIONS, save_steps=2)
    train(run_in(tmp_path, steps=2), options)
    with pytest.raises(RecipeError, match=r"lora\.r differs from what checkpoint-2") as error:
        go_on(run_in(tmp_path, lora={"r": 2}), options)
    assert (error.value.given, error.value.allowed) == ("2", "4")


def test_the_optimizer_state_of_other_parameters_is_refused(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    with pytest.raises(CheckpointError, match="other parameters"):
        Stepper(run.parameters, TrainOptions()).load_state_dict({"somewhere.else/exp_avg": torch.ones(1)})
