"""Numbers that are not finite and losses that jump: named, and either left out without a trace or the end."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lorikeet.base.errors import RecipeError, TrainingError
from lorikeet.base.nouns import Batch, Origin
from lorikeet.data.pack import pack_row
from lorikeet.ops.linear_cross_entropy import HeadLoss
from lorikeet.train.finite import FiniteOptions
from lorikeet.train.loop import train
from lorikeet.train.metrics import Metrics
from lorikeet.train.optim import Stepper
from lorikeet.train.options import TrainOptions
from lorikeet.train.out_of_memory import OutOfMemory
from lorikeet.train.rehearsal import Costliest
from lorikeet.train.run import Progress, Run
from lorikeet.train.spikes import ceiling, remember
from lorikeet.train.state import checkpoints, intact
from parity import tiny
from train.runs import OPTIONS, examples, go_on, losses, run_in

BAD = replace(tiny.example([1, 2, 23, 4, 5, 6]), origin=Origin("talks.jsonl", 6, 7))  # 23 is in no other


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """A run whose step 3 meets a token whose embedding is not a number."""
    made = partial(tiny.decoder, tied=False, vocab=24)
    monkeypatch.setattr(tiny, "decoder", made)

    def make(folder: Path, *, at: Sequence[int] = (2,), **changed: Any) -> Run:
        run = run_in(folder, **changed)
        run.model.embedding.weight.data[23] = math.nan
        good, batches = examples()[:2], run.batches

        def with_bad(step: int) -> list[Batch]:
            return [*batches(step), *([pack_row([*good, BAD], share=False)] if step in at else [])]

        run.batches, run.examples = with_bad, lambda _: [*good, BAD]
        return run

    return make


def kept(run: Run, stepper: Stepper) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in {**run.parameters, **stepper.state_dict()}.items()}


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in Metrics(folder / "metrics.jsonl").rows() if row["kind"] == kind]


def test_a_step_that_is_not_a_number_is_left_out_without_a_trace(
    poisoned: Callable[..., Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, options = poisoned(tmp_path), TrainOptions(**OPTIONS, on_nonfinite="skip")
    stepper, seen = Stepper(run.parameters, options), {}
    batches = run.batches

    def watched(step: int) -> Sequence[Batch]:
        seen[step] = kept(run, stepper)
        return batches(step)

    run.batches = watched
    done = train(run, options, stepper=stepper).done
    assert done.step == 7 and done.skipped == 1 and done.skipped_in_a_row == 0
    assert seen[2].keys() == seen[3].keys()
    assert all(torch.equal(seen[2][name], seen[3][name]) for name in seen[2]), "a step that is left out moved something"
    assert any(not torch.equal(seen[3][name], seen[4][name]) for name in seen[3])
    (row,) = rows(tmp_path, "skipped")
    assert row["step"] == 3 and row["rows"] == ["talks.jsonl:7"] and row["layer"] == "embedding"
    assert row["why"] == "the loss of step 3 is nan"
    assert "the step is left out (talks.jsonl:7, in embedding)" in capsys.readouterr().err


def test_the_end_names_the_row_and_the_layer_and_saves_what_was_there(
    poisoned: Callable[..., Run], tmp_path: Path
) -> None:
    options = TrainOptions(**OPTIONS)
    with pytest.raises(TrainingError, match="loss of step 3 is nan") as error:
        train(poisoned(tmp_path), options)
    assert "talks.jsonl:7, in embedding" in str(error.value) and "on_nonfinite=skip" in str(error.value)
    assert checkpoints(tmp_path) == [2] and intact(tmp_path / "checkpoint-2")
    # the same run goes on with the other policy
    outcome = go_on(poisoned(tmp_path), TrainOptions(**OPTIONS, on_nonfinite="skip"))
    assert outcome.done.step == 7 and outcome.done.skipped == 1


def test_too_many_in_a_row_are_the_end(poisoned: Callable[..., Run], tmp_path: Path) -> None:
    options = TrainOptions(**OPTIONS, on_nonfinite="skip", max_skipped_steps=2)
    with pytest.raises(TrainingError, match="3 steps in a row are left out") as error:
        train(poisoned(tmp_path, at=(2, 3, 4)), options)
    assert "max_skipped_steps" in str(error.value)
    assert len(rows(tmp_path, "skipped")) == 2


@pytest.mark.parametrize("early", [False, True])
def test_a_gradient_that_is_not_finite_names_its_tensor(early: bool, tmp_path: Path) -> None:
    run = run_in(tmp_path, evaluate_before=False)
    name, parameter = list(run.parameters.items())[-1]
    parameter.register_hook(lambda gradient: gradient * math.inf)
    changed: dict[str, Any] = {"optimizer_in_backward": True, "max_grad_norm": 0} if early else {}
    before = parameter.detach().clone()
    with pytest.raises(TrainingError, match=r"gradient norm of step 1 is (nan|inf)") as error:
        train(run, TrainOptions(**OPTIONS | changed))
    assert name in str(error.value)
    assert ("moved in the pass already" in str(error.value)) == early
    assert torch.equal(parameter, before) != early


def test_memory_that_ends_in_the_update_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, options = run_in(tmp_path, evaluate_before=False), TrainOptions(**OPTIONS, save_steps=1)
    stepper = Stepper(run.parameters, options)
    moves = [0, 0, 1]

    def update(*_: Any, **__: Any) -> None:
        if moves.pop(0):
            raise MemoryError("no room for its state")

    monkeypatch.setattr(stepper.optimizer, "step", update)
    with pytest.raises(OutOfMemory, match="while the weights were moved") as error:
        train(run, options, stepper=stepper)
    assert "no room for its state" in str(error.value) and checkpoints(tmp_path) == [1, 2]


def test_a_jump_of_the_loss_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for policy in ("warn", "skip", "stop"):
        folder = tmp_path / policy
        run = run_in(folder, steps=19, evaluate_before=False, validation=None)
        batches, table = run.batches, run.model.embedding.weight.data

        def jumping(
            step: int, batches: Callable[[int], Sequence[Batch]] = batches, table: torch.Tensor = table
        ) -> Sequence[Batch]:
            table.mul_({17: 32.0, 18: 1 / 32}.get(step, 1.0))
            return batches(step)

        run.batches = jumping
        options = TrainOptions(**OPTIONS | {"learning_rate": 1e-4}, on_loss_spike=policy)
        if policy == "stop":
            with pytest.raises(TrainingError, match=r"step 18 is .*, a spike"):
                train(run, options)
            assert checkpoints(folder) == [17]
        else:
            assert train(run, options).done.skipped == (policy == "skip")
        assert rows(folder, "spike")[0]["step"] == 18
        assert "step 18: the loss jumped to" in capsys.readouterr().err
    before = {step: loss for step, loss in losses(tmp_path / "warn").items() if step < 18}
    assert before == {step: loss for step, loss in losses(tmp_path / "stop").items() if step < 18}


def test_a_loss_that_is_infinite_is_no_spike_but_the_end(tmp_path: Path) -> None:
    """Behind 16 losses it is above any ceiling too, and the policy for spikes is only to warn."""
    run, done = run_in(tmp_path, steps=19, evaluate_before=False, validation=None), Progress()
    whole = run.model.head.loss

    def infinite(*given: Any, **said: Any) -> HeadLoss:
        found = whole(*given, **said)
        return found._replace(loss=found.loss + math.inf) if done.step == 17 else found

    run.model.head.loss = infinite  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="the loss of step 18 is inf") as error:
        train(run, TrainOptions(**OPTIONS), done=done)
    assert "on_nonfinite=skip" in str(error.value) and not rows(tmp_path, "spike")
    assert checkpoints(tmp_path) == [17]


def test_the_state_before_the_step_that_ends_a_run_counts_nothing_of_it(
    poisoned: Callable[..., Run], tmp_path: Path
) -> None:
    """What the message advises has to be enough."""
    options = TrainOptions(**OPTIONS, on_nonfinite="skip", max_skipped_steps=1)
    with pytest.raises(TrainingError, match="2 steps in a row are left out") as error:
        train(poisoned(tmp_path, at=(2, 3)), options)
    assert "train.max_skipped_steps above 1" in str(error.value)
    more = options.model_copy(update={"max_skipped_steps": 2})
    assert go_on(poisoned(tmp_path, at=(2, 3)), more).done.skipped == 2


def test_a_row_that_no_scale_helps_takes_nothing_from_the_scale(
    poisoned: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16: the smallest scale would lose the gradients of all steps behind it."""
    made = tiny.decoder
    monkeypatch.setattr(tiny, "decoder", lambda **said: made(**{**said, "dtype": torch.float16}))
    run = poisoned(tmp_path, evaluate_before=False)
    run.model.embedding.weight.data[23] = 0
    (*_, parameter) = run.parameters.values()
    done = Progress()
    parameter.register_hook(lambda gradient: gradient * math.inf if done.step == 2 else gradient)
    train(run, TrainOptions(**OPTIONS, on_nonfinite="skip"), done=done)
    assert done.skipped == 1 and done.loss_scale is not None
    assert done.loss_scale["scale"] > 1


def test_what_a_jump_is() -> None:
    known: list[float] = []
    for i in range(15):
        remember(known, 2 + 0.1 * (i % 3))
    assert ceiling(known, 10) is None, "too few to judge by"
    for i in range(100):
        remember(known, 2 + 0.1 * (i % 3))
    limit = ceiling(known, 10)
    assert limit is not None and 2.3 < limit < 4 and len(known) == 64
    assert ceiling(known, 0) is None
    remember(known, 1000.0)
    assert ceiling(known, 10) == pytest.approx(limit, rel=0.05), "a jump does not make the next one usual"
    assert ceiling([1.0] * 64, 10) == pytest.approx(1.1)
    assert ceiling([0.002, 0.003] * 32, 10) == pytest.approx(0.1025), "what is learned by heart jumps by thousandths"


def test_float16_finds_a_scale_and_keeps_it_in_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = partial(tiny.decoder, dtype=torch.float16)
    monkeypatch.setattr(tiny, "decoder", lambda **said: half(**{**said, "dtype": torch.float16}))
    options = TrainOptions(**OPTIONS, save_steps=3, save_total_limit=5)
    start = Progress(loss_scale={"scale": 2.0**24, "good_steps": 0})
    run = run_in(tmp_path / "whole", evaluate_before=False)
    done = train(run, options, done=start).done
    assert done.skipped == 0 and done.step == 7
    assert done.loss_scale is not None and 1 < done.loss_scale["scale"] < 2**24 and done.loss_scale["good_steps"] > 0
    found = losses(tmp_path / "whole")
    assert found[7] < 0.9 * found[1]
    assert run.model.dtype == torch.float16
    resumed = go_on_from(tmp_path, 3, options)
    assert resumed.loss_scale == done.loss_scale
    assert losses(tmp_path / "killed") == {step: loss for step, loss in found.items() if step > 3} | {
        step: loss for step, loss in losses(tmp_path / "killed").items() if step <= 3
    }
    with pytest.raises(RecipeError, match="optimizer_in_backward: float16"):
        train(run_in(tmp_path / "early"), TrainOptions(**OPTIONS | {"max_grad_norm": 0}, optimizer_in_backward=True))


def go_on_from(folder: Path, step: int, options: TrainOptions) -> Progress:
    """Resume the run in `folder/whole` from one of its checkpoints, in `folder/killed`."""
    (folder / "killed").mkdir()
    shutil.copytree(folder / "whole" / f"checkpoint-{step}", folder / "killed" / f"checkpoint-{step}")
    return go_on(run_in(folder / "killed", evaluate_before=False), options).done


@pytest.mark.parametrize(
    "options",
    [
        {"on_nonfinite": "ignore"},
        {"max_skipped_steps": 0},
        {"loss_spike_factor": -1},
        {"on_loss_spike": "skip", "loss_spike_factor": 0},
        {"on_nonfinite": "skip", "optimizer_in_backward": True, "max_grad_norm": 0},
        {"rehearsal": "sometimes"},
    ],
)
def test_policies_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainOptions.model_validate(options)
    assert FiniteOptions().on_nonfinite == "stop"


def test_a_rehearsal_changes_no_number_and_says_the_peak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for lora, early in (({}, False), ({"lora_dropout": 0.3}, False), ({}, True)):
        changed = {"optimizer_in_backward": True, "max_grad_norm": 0} if early else {}
        plain, first = tmp_path / f"plain{lora}{early}", tmp_path / f"first{lora}{early}"
        train(run_in(plain, lora=lora), TrainOptions(**OPTIONS | changed, rehearsal=False))
        run = run_in(first, lora=lora)
        big = pack_row(examples(), share=False)
        run.costliest = lambda big=big: Costliest(big, 4, 3, 7)
        train(run, TrainOptions(**OPTIONS | changed, rehearsal=True))
        assert losses(first) == losses(plain) and len(losses(first)) == 7
        (row,) = rows(first, "memory")
        assert row["certified_peak_bytes"] > 1 << 20 and row["step"] == 0
        said = capsys.readouterr().err
        assert f"with the costliest row of 7 planned steps (step 5, {len(big.tokens)} tokens)" in said


def test_auto_rehearses_long_runs_only_and_lets_the_first_step_do_it(tmp_path: Path) -> None:
    asked = []
    run = run_in(tmp_path / "short", validation=None)
    run.costliest = lambda: asked.append(1)  # type: ignore[assignment, return-value]
    train(run, TrainOptions(**OPTIONS))
    assert not asked, "a run of seven steps is over before a rehearsal is worth it"
    run = run_in(tmp_path / "long", steps=20, validation=None)
    first = max(run.batches(0), key=lambda row: len(row.tokens))
    run.costliest = lambda: Costliest(first, 0, 3, 20)
    train(run, TrainOptions(**OPTIONS))
    (row,) = rows(tmp_path / "long", "memory")
    assert row["step"] == 0
