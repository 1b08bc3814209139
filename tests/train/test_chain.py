"""The chain of hashes: what a run that is stopped and gone on with knows of itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorikeet.base.errors import Interrupted, RecipeError
from lorikeet.data.pack import pack_row
from lorikeet.train import guard
from lorikeet.train.chain import Chain, first_wrong, ids_hash, links, tensors_hash
from lorikeet.train.loop import train
from lorikeet.train.metrics import Metrics
from lorikeet.train.options import TrainOptions
from lorikeet.train.out_of_memory import OutOfMemory
from lorikeet.train.run import Progress, Run, summarise
from lorikeet.train.step import StepResult, train_step
from train.runs import OPTIONS, calling, examples, go_on, run_in

SAVED = TrainOptions(**OPTIONS, save_steps=3, save_total_limit=9)


def rows_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in Metrics(folder / "metrics.jsonl").rows() if row["kind"] == kind]


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A run that was killed behind step 5 of 7: its checkpoint is that of step 3."""
    train(run_in(tmp_path / "whole"), SAVED)
    killed = tmp_path / "killed"
    killed.mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", killed / "checkpoint-3")
    Metrics(killed / "metrics.jsonl").keep(
        row for row in Metrics(tmp_path / "whole" / "metrics.jsonl").rows() if row.get("step", 0) <= 5
    )
    return killed


def test_every_step_has_a_link_that_follows_from_those_before(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    outcome = train(run, SAVED)
    rows = rows_of(tmp_path, "chain")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    losses = [row["loss"] for row in rows_of(tmp_path, "train")]
    assert [float.fromhex(row["loss"]) for row in rows] == losses, "bit for bit"
    assert first_wrong(rows, 7, outcome.done.chain) is None
    assert summarise(outcome, run, wall_seconds=1.0)["chain"] == rows[-1]["chain"]


def test_a_changed_row_is_noticed(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = killed / "metrics.jsonl"
    row = rows_of(killed, "chain")[1]
    file.write_text(file.read_text().replace(json.dumps(row), json.dumps(row | {"loss": (1.5).hex()})))
    go_on(run_in(killed), SAVED)
    assert "what it says of step 2 does not follow" in " ".join(capsys.readouterr().err.split())


def test_steps_that_are_done_again_come_to_the_same(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = go_on(run_in(killed), SAVED)
    begun = rows_of(killed, "start")
    assert [row["step"] for row in begun] == [3] and sorted(begun[0]["again"]) == ["4", "5"]
    assert outcome.differs is None and rows_of(killed, "differs") == []
    assert "is done again and does not" not in capsys.readouterr().err
    whole = killed.parent / "whole"
    assert rows_of(killed, "chain") == rows_of(whole, "chain")


@pytest.mark.parametrize("what", ["ids", "parameters"])
def test_a_difference_is_told_with_what_differs(killed: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_in(killed)
    if what == "ids":
        batches = run.batches
        run.batches = lambda step: [
            replace(batch, tokens=(batch.tokens + 1) % 20) if step == 4 else batch for batch in batches(step)
        ]
    else:  # a bit that flips in memory
        parameter = list(run.parameters.values())[3]
        calling(run, 4, lambda: parameter.data.view(torch.int32).view(-1)[0].bitwise_xor_(1 << 28))
    outcome = go_on(run, SAVED)
    assert outcome.differs is not None and outcome.differs["step"] == 5
    assert {"loss", "grad_norm"} <= outcome.differs.keys()
    assert ("ids" in outcome.differs) == (what == "ids")
    said = " ".join(capsys.readouterr().err.split())
    assert "step 5 is done again and does not come to what it came to before the stop" in said
    assert ("the tokens it saw" in said) == (what == "ids")
    assert rows_of(killed, "differs")[0]["step"] == 5
    summary = summarise(outcome, run, wall_seconds=1.0)
    assert summary["differs"]["loss"].keys() == {"now", "before"}


def test_a_run_that_is_stopped_again_and_again_knows_the_farthest_it_has_been(killed: Path) -> None:
    def power_fails() -> None:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError):
        go_on(calling(run_in(killed), 3, power_fails), SAVED)  # before one step is done
    run = calling(run_in(killed), 4, power_fails)
    with pytest.raises(RuntimeError):
        go_on(run, SAVED)
    assert sorted(run.again) == [4, 5]
    assert sorted(links(Metrics(killed / "metrics.jsonl").rows())) == [1, 2, 3, 4, 5]
    run = run_in(killed)
    go_on(run, SAVED)
    assert sorted(run.again) == [4, 5]


def test_a_step_that_is_done_again_is_split_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory ended in the third row, then in the first, and the second, as long as they are, fitted."""
    row = pack_row(examples()[:4], share=False)

    def begun(folder: Path) -> Run:
        return run_in(folder, batches=lambda _: [row] * 3)

    done, scarce = Progress(), ["2", "0"]

    def step(*given: Any, names: Sequence[str], **said: Any) -> StepResult:
        if done.step == 4 and scarce:
            raise OutOfMemory(list(names).index(scarce.pop(0)), len(row.tokens), "no room")
        return train_step(*given, names=names, **said)

    monkeypatch.setattr(guard, "train_step", step)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(begun(whole), SAVED, done=done)
    killed.mkdir()
    shutil.copytree(whole / "checkpoint-3", killed / "checkpoint-3")
    Metrics(killed / "metrics.jsonl").keep(
        row for row in Metrics(whole / "metrics.jsonl").rows() if row.get("step", 0) <= 5
    )
    assert go_on(begun(killed), SAVED).differs is None
    assert rows_of(killed, "chain") == rows_of(whole, "chain")
    assert [row.get("splits") for row in rows_of(whole, "chain")][3:] == [None, "0 2", "0 1 2", "0 1 2"]


def test_what_was_done_before_a_forced_change_is_held_against_nothing_later() -> None:
    def link(step: int, said: str) -> dict[str, Any]:
        return {"kind": "chain", "step": step, "loss": said, "chain": said}

    old = {str(step): {"loss": "old", "chain": "old"} for step in (4, 5)}
    rows = [
        *(link(step, "old") for step in (1, 2, 3)),
        {"kind": "start", "step": 3, "again": old},
        {"kind": "start", "step": 3, "forced": {"threads": {"now": 2, "before": 1}}},
        link(4, "new"),
    ]
    assert {step: one["chain"] for step, one in links(rows).items()} == {1: "old", 2: "old", 3: "old", 4: "new"}


def test_a_difference_is_not_forgotten_by_the_next_stop(killed: Path) -> None:
    parameter = list((run := run_in(killed)).parameters.values())[3]
    calling(run, 4, lambda: parameter.data.view(torch.int32).view(-1)[0].bitwise_xor_(1 << 28))
    run.stop_after = 6
    with pytest.raises(Interrupted):
        go_on(run, SAVED)
    outcome = go_on(run_in(killed), SAVED)
    assert outcome.differs is not None and outcome.differs["step"] == 5


def test_forced_changes_are_written_down_and_held_against_nothing(killed: Path) -> None:
    changed = SAVED.model_copy(update={"learning_rate": 0.01})
    identity = {"data": "abc", "lora": {"r": 4}, "train": {"learning_rate": 0.01, "seed": 0}}
    state = json.loads((killed / "checkpoint-3" / "state.json").read_text())
    state["identity"] = identity | {"train": {"learning_rate": 0.05, "seed": 0}}
    (killed / "checkpoint-3" / "state.json").write_text(json.dumps(state))
    from lorikeet.base.files import sha256_file

    sums = json.loads((killed / "checkpoint-3" / "complete.json").read_text())
    sums["state.json"] = sha256_file(killed / "checkpoint-3" / "state.json")
    (killed / "checkpoint-3" / "complete.json").write_text(json.dumps(sums))
    with pytest.raises(RecipeError, match=r"train\.learning_rate differs") as error:
        go_on(run_in(killed, identity=identity), changed)
    assert (error.value.given, error.value.allowed) == ("0.01", "0.05") and "--force-resume" in str(error.value)
    outcome = go_on(run_in(killed, identity=identity), changed, force=True)
    assert outcome.differs is None
    row = rows_of(killed, "start")[-1]
    assert row["forced"] == {"train.learning_rate": {"now": 0.01, "before": 0.05}} and "again" not in row


def test_a_torn_last_line_is_repaired(killed: Path) -> None:
    file = killed / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-30] + b"\x00\x00\xff")
    go_on(run_in(killed), SAVED)
    assert [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["step"] for row in rows_of(killed, "train")] == [1, 2, 3, 4, 5, 6, 7]


def test_the_hash_of_all_that_trains_comes_seldom_for_large_tensors(tmp_path: Path) -> None:
    small = {"a": torch.nn.Parameter(torch.zeros(3))}
    large = {"a": torch.nn.Parameter(torch.zeros(100 << 20, dtype=torch.uint8), requires_grad=False)}
    metrics = Metrics(tmp_path / "metrics.jsonl")
    assert (Chain(metrics, small).every, Chain(metrics, large).every) == (10, 50)
    chain = Chain(metrics, small)
    for step in range(1, 21):
        chain.after_step(step, [], 1.0, 1.0)
    assert [row["step"] for row in rows_of(tmp_path, "chain") if "parameters" in row] == [10, 20]


def test_hashes_see_every_bit() -> None:
    one = {"a": torch.zeros(3), "b": torch.zeros(())}
    assert tensors_hash(one) == tensors_hash({name: value.clone() for name, value in one.items()})
    negative = {"a": torch.tensor([0.0, -0.0, 0.0]), "b": torch.zeros(())}
    assert tensors_hash(one) != tensors_hash(negative)
    assert tensors_hash(one) != tensors_hash({"a": torch.zeros(3), "c": torch.zeros(())})


def test_what_was_learned_from_is_part_of_the_ids(tmp_path: Path) -> None:
    batch = run_in(tmp_path).batches(0)[0]
    assert ids_hash([batch]) == ids_hash([replace(batch)])
    assert ids_hash([batch]) != ids_hash([replace(batch, weights=batch.weights * 0.5)])
    assert ids_hash([batch]) != ids_hash([batch, batch])
