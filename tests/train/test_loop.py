"""The loop lowers the loss, stops when asked, says when numbers are not finite, and counts what it did."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from lorikeet.base.errors import Interrupted, TrainingError
from lorikeet.train.loop import train
from lorikeet.train.metrics import Metrics
from lorikeet.train.options import TrainOptions
from lorikeet.train.run import summarise
from lorikeet.train.state import checkpoints, intact
from train.runs import OPTIONS, calling, go_on, losses, run_in


def test_training_lowers_the_loss_and_says_so(tmp_path: Path) -> None:
    run = run_in(tmp_path, steps=20)
    outcome = train(run, TrainOptions(**OPTIONS, eval_steps=10))
    found, held_out = losses(tmp_path), losses(tmp_path, "eval")
    assert sorted(found) == list(range(1, 21)) and sorted(held_out) == [0, 10, 20]
    assert found[20] < 0.5 * found[1] and held_out[20] < 0.5 * held_out[0]
    summary = summarise(outcome, run, wall_seconds=1.0)
    assert summary["steps"] == 20 and summary["train_loss"] == pytest.approx(sum(found.values()) / 20)
    assert summary["eval_loss"] == held_out[20] and summary["eval_loss_before"] == held_out[0]
    assert summary["perplexity"] == pytest.approx(math.exp(held_out[20]))
    rows = Metrics(tmp_path / "metrics.jsonl").rows()
    assert summary["tokens"] == sum(row["tokens"] for row in rows if row["kind"] == "train")
    assert summary["trainable_parameters"] == sum(parameter.numel() for parameter in run.parameters.values())
    assert summary["parameters"] == sum(tensor.numel() for _, tensor in run.model.tensors())


def test_frozen_weights_do_not_move(tmp_path: Path) -> None:
    run = run_in(tmp_path, steps=3)
    before = {name: tensor.clone() for name, tensor in run.model.tensors()}
    train(run, TrainOptions(**OPTIONS))
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.tensors())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_can_be_gone_on_from(number: int, tmp_path: Path) -> None:
    options, before = TrainOptions(**OPTIONS), signal.getsignal(number)
    run = calling(run_in(tmp_path / "stopped"), 2, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match="after step 3 of 7") as stopped:
        train(run, options)
    assert stopped.value.exit_code == 3
    assert checkpoints(tmp_path / "stopped") == [3] and intact(tmp_path / "stopped" / "checkpoint-3")
    assert signal.getsignal(number) == before
    go_on(run_in(tmp_path / "stopped"), options)
    train(run_in(tmp_path / "whole"), options)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(calling(run_in(tmp_path), 1, twice), TrainOptions(**OPTIONS))
    assert checkpoints(tmp_path) == []


def test_a_signal_in_the_last_step_changes_nothing(tmp_path: Path) -> None:
    run = calling(run_in(tmp_path, steps=3), 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train(run, TrainOptions(**OPTIONS)).done.step == 3


def test_a_loss_that_is_not_a_number_stops_the_run_and_leaves_earlier_checkpoints(tmp_path: Path) -> None:
    run = run_in(tmp_path, evaluate_before=False)
    calling(run, 2, lambda: run.model.embedding.weight.data.fill_(math.nan))
    with pytest.raises(TrainingError, match="loss of step 3 is nan"):
        train(run, TrainOptions(**OPTIONS, save_steps=1))
    assert checkpoints(tmp_path) == [1, 2] and intact(tmp_path / "checkpoint-2")


def test_a_tensor_outside_the_graph_stops_the_run(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    run.parameters = dict(run.parameters) | {"stray": torch.nn.Parameter(torch.ones(2))}
    with pytest.raises(TrainingError, match="1 of 29 trainable tensors receive no gradient") as error:
        train(run, TrainOptions(**OPTIONS))
    assert "stray" in str(error.value)
    assert max(losses(tmp_path)) < 7


def test_logging_steps_thin_the_metrics(tmp_path: Path) -> None:
    train(run_in(tmp_path), TrainOptions(**OPTIONS, logging_steps=3))
    assert sorted(losses(tmp_path)) == [1, 3, 6]


def test_two_ways_to_write_the_conversations_of_a_step() -> None:
    options = TrainOptions.model_validate({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3})
    assert options.examples_per_step == 12
    with pytest.raises(ValidationError, match="say different things"):
        TrainOptions.model_validate({"per_device_train_batch_size": 4, "examples_per_step": 3})
    # what a run writes down reads back
    assert TrainOptions.model_validate(options.model_dump()) == options


@pytest.mark.parametrize(
    "options", [{"warmup_steps": 3, "warmup_ratio": 0.1}, {"lr_scheduler_type": "constant", "warmup_ratio": 0.1}]
)
def test_a_warm_up_without_effect_is_refused(options: dict) -> None:
    with pytest.raises(ValidationError, match="warm"):
        TrainOptions(**options)
