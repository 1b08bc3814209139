"""What a run may take: foreseen, kept to, and told."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lorikeet.base.errors import Interrupted, OutputError
from lorikeet.base.files import free_bytes
from lorikeet.train import guard, loop, validation
from lorikeet.train.limits import Budget, LimitOptions, checkpoint_bytes, reserve_disk
from lorikeet.train.loop import train
from lorikeet.train.metrics import Metrics
from lorikeet.train.options import TrainOptions
from lorikeet.train.state import checkpoints, intact
from train.runs import OPTIONS, calling, go_on, losses, run_in


class Clock:
    """The time as limits see it: what asks for it takes 10 ms, and nothing else takes any, but where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        self.now += 0.01
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("lorikeet.train.limits.time", made)
    return made


LIMITS = {
    "time": ["soon", "-1h", "0s", "2h30", "", -5, 0],
    "memory": ["much", "8 apples", "0GiB", -1, 0],
    "disk": ["-2GiB", "a disk", 0],
    "tokens": ["all", "1e6", 0, -3],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in LIMITS.items() for value in values])
def test_what_is_no_amount_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match="no amount"):
        LimitOptions.model_validate({name: value})


def test_amounts_are_read_and_read_back() -> None:
    limits = LimitOptions(time="2h30m", memory="8GiB", disk=10**9, tokens="10M")
    assert [limits.amount(name) for name in ("time", "memory", "disk", "tokens")] == [9000, 8 << 30, 10**9, 10**7]
    assert LimitOptions.model_validate(limits.model_dump(mode="json")) == limits
    assert LimitOptions().amount("time") is None


def test_tokens_end_a_run_before_they_are_exceeded_and_a_larger_limit_goes_on(tmp_path: Path) -> None:
    options = TrainOptions(**OPTIONS)
    whole = train(run_in(tmp_path / "whole"), options)
    rows = [row for row in Metrics(tmp_path / "whole" / "metrics.jsonl").rows() if row["kind"] == "train"]
    limit = sum(row["tokens"] for row in rows[:4]) + 1
    run = run_in(tmp_path / "short", budget=Budget(LimitOptions(tokens=limit)))
    outcome = train(run, options)
    assert outcome.done.step == 4 and outcome.done.tokens == limit - 1 and run.budget.ended_by == "tokens"
    assert outcome.evaluation is not None, "the last evaluation is made all the same"
    assert checkpoints(tmp_path / "short") == [4] and intact(tmp_path / "short" / "checkpoint-4")
    name, remedy = run.budget.line(run.folder)
    assert name == f"limits.tokens ({limit})" and "limits.tokens=null" in remedy
    assert go_on(run_in(tmp_path / "short"), options).done.step == 7
    assert losses(tmp_path / "short") == losses(tmp_path / "whole")
    assert whole.done.tokens == sum(row["tokens"] for row in rows)


def test_time_ends_a_run_early_enough_for_all_that_comes_behind(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps take 0.2 s, evaluations 0.3 and checkpoints 0.5; nothing of it may come too late."""

    def takes(module: Any, name: str, seconds: float) -> None:
        real = getattr(module, name)

        def slowly(*given: Any, **more: Any) -> Any:
            clock.now += seconds
            return real(*given, **more)

        monkeypatch.setattr(module, name, slowly)

    takes(guard, "train_step", 0.2)
    takes(validation, "evaluate", 0.3)
    takes(loop, "save_checkpoint", 0.5)
    budget = Budget(LimitOptions(time=6))
    budget.expect("save", 0.5)  # the verb knows what a checkpoint will take
    outcome = train(run_in(tmp_path, steps=200, budget=budget), TrainOptions(**OPTIONS, eval_steps=5))
    assert 10 < outcome.done.step < 30 and budget.ended_by == "time" and budget.left > 0
    assert checkpoints(tmp_path) == [outcome.done.step] and outcome.evaluation is not None
    assert "the same command goes on for as long again" in str(budget.interrupted(tmp_path, 3, 9))


def test_a_time_too_short_for_anything_says_so(tmp_path: Path) -> None:
    run = run_in(tmp_path, budget=Budget(LimitOptions(time="1s"), started=time.monotonic() - 10))
    with pytest.raises(Interrupted, match=r"limits.time \(1s\) ended the run after step 0 of 7; nothing is trained"):
        train(run, TrainOptions(**OPTIONS))
    assert checkpoints(tmp_path) == []


def slow_by_its_record(folder: Path, seconds: list[float]) -> None:
    """As if the run's steps had taken so long."""
    metrics, times = Metrics(folder / "metrics.jsonl"), iter(seconds)
    metrics.keep([row | ({"seconds": next(times)} if row["kind"] == "train" else {}) for row in metrics.rows()])


def test_the_first_step_of_a_run_that_goes_on_is_foreseen_by_the_steps_before(tmp_path: Path) -> None:
    options = TrainOptions(**OPTIONS, save_steps=3)
    with pytest.raises(Interrupted):
        train(run_in(tmp_path, stop_after=3), options)
    slow_by_its_record(tmp_path, [40, 60, 50])
    run = run_in(tmp_path, budget=Budget(LimitOptions(time="30s")))
    outcome = go_on(run, options)
    assert outcome.done.step == 3 and run.budget.ended_by == "time" and outcome.evaluation is not None
    said = run.budget.interrupted(tmp_path, 3, 7)
    assert "after step 3 of 7" in said.what and "everything is saved" in said.what
    # the same command would come no farther, however often it is given
    assert "a longer limits.time: a step took 60 s" in str(said.try_)
    assert go_on(run_in(tmp_path, budget=Budget(LimitOptions(time="3h"))), options).done.step == 7


def test_a_step_that_once_took_for_ever_does_not_hold_up_the_run_for_ever(tmp_path: Path) -> None:
    """The machine slept, say."""
    options = TrainOptions(**OPTIONS, save_steps=6)
    with pytest.raises(Interrupted):
        train(run_in(tmp_path, stop_after=6), options)
    slow_by_its_record(tmp_path, [0.1, 0.1, 40_000, 0.1, 0.1, 0.1])
    assert go_on(run_in(tmp_path, budget=Budget(LimitOptions(time="3h"))), options).done.step == 7


def test_what_was_measured_is_expected_again(clock: Clock) -> None:
    budget = Budget(LimitOptions(time="1h"), started=clock.now - 3590)
    assert budget.enough_for("step", "save")
    budget.expect("save", 8.0)
    assert budget.enough_for("save") and not budget.enough_for("save", "save")
    with budget.timed("save"):
        clock.now += 1
    assert budget.seconds("save") < 5, "what was measured counts, not what was thought"
    assert Budget().left == float("inf")


def test_the_disk_is_asked_before_the_start(tmp_path: Path) -> None:
    run, options = run_in(tmp_path), TrainOptions(**OPTIONS)
    train(run, options)
    each = checkpoint_bytes(run.parameters, options.optim)
    (saved,) = checkpoints(tmp_path)
    there = sum(file.stat().st_size for file in (tmp_path / f"checkpoint-{saved}").iterdir())
    assert there <= each <= there + (1 << 20)
    reserve_disk(tmp_path, LimitOptions(disk="1GiB"), each, keep=2)
    with pytest.raises(OutputError, match=r"limits.disk: too little for 2 checkpoints") as error:
        reserve_disk(tmp_path, LimitOptions(disk=3 * each), each, keep=2)
    assert "save_total_limit=1" in str(error.value)
    with pytest.raises(OutputError, match="not enough disk space for 3 checkpoints"):
        reserve_disk(tmp_path, LimitOptions(), free_bytes(tmp_path), keep=2)
    large = {"w": torch.nn.Parameter(torch.empty(1000, 1000, device="meta"))}
    assert 12 * 10**6 <= checkpoint_bytes(large, options.optim) <= 12 * 10**6 + (1 << 20) + 64


def test_an_evaluation_that_was_not_due_tells_nothing_of_one_that_is(tmp_path: Path, clock: Clock) -> None:
    """However long the machine took to find that it was not."""
    run = run_in(tmp_path, evaluate_before=False, budget=Budget(LimitOptions(time="9h")))
    run.budget.expect("evaluate", 5.0)
    run.sample, expected = lambda _: None, []
    calling(run, 6, lambda: expected.append(run.budget.seconds("evaluate")))
    train(run, TrainOptions(**OPTIONS))
    assert expected == [5.0]
    assert run.budget.seconds("evaluate") < 5, "the last one was"


def test_what_was_not_measured_is_estimated_from_the_steps(tmp_path: Path) -> None:
    """Without an evaluation before, the one at the end is thought to take what its tokens take in training."""
    run = run_in(tmp_path, evaluate_before=False, budget=Budget(LimitOptions(time="9h")))
    train(run, TrainOptions(**OPTIONS))
    run.budget._took.pop("evaluate", None)
    assert 0 < run.budget.seconds("evaluate") < 60
