"""Which step is simulated, and which changes are tried in which order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet.base.nouns import Batch
from lorikeet.plan import search
from lorikeet.plan.search import Changes, Facts, Trial, ladders
from lorikeet.plan.steps import _spread as spread
from lorikeet.plan.steps import costliest, full, full_row

FACTS = Facts(row_tokens=2048, longest=512, layers=8, twice=0, dtype="bfloat16", adapter=[{"adapter.r": 4}])


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps are looked at, however long that takes, but where a test says otherwise."""
    monkeypatch.setattr("lorikeet.plan.steps.LOOK_SECONDS", float("inf"))


def rows_of(step: int) -> list[Batch]:
    return [full_row(1, 16 + step), full_row(1, 100 if step == 5 else 20)]


def test_the_costliest_step_has_the_largest_row() -> None:
    found = costliest(rows_of, epoch_steps=8, steps=16, layers=4)
    assert found.step == 5
    assert [row.tokens for row in found.rows] == [100, 21], "the costliest row comes first"
    assert found.looked_at == 8
    assert found.run_tokens == 2 * sum(len(row.tokens) for step in range(8) for row in rows_of(step))


def test_a_run_shorter_than_an_epoch_has_fewer_steps() -> None:
    found = costliest(rows_of, epoch_steps=8, steps=3, layers=4)
    assert found.looked_at == 3 and found.step < 3


def test_of_many_rows_two_are_run() -> None:
    found = costliest(lambda _step: [full_row(1, 32)] * 8, epoch_steps=1, steps=1, layers=4)
    assert len(found.batches) == 2 and found.share == 0.25


def test_a_large_epoch_is_not_looked_at_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorikeet.plan.steps.LOOK_SECONDS", 0.0)
    found = costliest(rows_of, epoch_steps=1000, steps=1000, layers=4)
    assert found.looked_at == 1


def test_an_epoch_as_long_as_a_recipe_may_say_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorikeet.plan.steps.LOOK_SECONDS", 0.0)
    assert costliest(rows_of, epoch_steps=10**18, steps=10**18, layers=4).looked_at == 1


@given(st.integers(1, 300))
def test_steps_are_looked_at_by_their_reversed_bits(count: int) -> None:
    bits = max(1, (count - 1).bit_length())
    assert list(spread(count)) == sorted(range(count), key=lambda step: f"{step:0{bits}b}"[::-1])


def test_rows_of_unknown_data_are_full() -> None:
    found = full(full_row(4, 512), conversations=4, examples_per_step=10, steps=0)
    assert [row.tokens for row in found.rows] == [2048] * 3 and len(found.batches) == 2


def size(changes: Changes, facts: Facts = FACTS) -> int:
    """A memory that falls with every change: weights 100, a token 1 or 0.25."""
    rows: Any = changes.get("train.row_tokens", facts.row_tokens)
    tokens = max(rows, min(changes.get("data.max_length", 9999), facts.longest))
    twice = changes.get("train.gradient_checkpointing", facts.twice)
    layers = facts.layers if twice is True else twice
    return int(100 + tokens * (1 - 0.75 * layers / facts.layers) + changes.get("adapter.r", 8))


def found(limit: int, facts: Facts = FACTS) -> list[search.Tried]:
    def simulate(changes: Changes) -> Trial:
        twice = changes.get("train.gradient_checkpointing", False)
        return Trial(changes, size(changes, facts), 1.3 if twice else 1.0, "saved activations")

    return search.search(facts, limit, simulate)


def test_the_mildest_change_that_fits_comes_first() -> None:
    first, second, *_ = found(1200)
    assert first.trial.changes == {"train.row_tokens": 1024}
    assert second.trial.changes == {"train.gradient_checkpointing": 6}, "of 8 layers; fewer do not suffice"
    assert first.fits and second.fits


def test_what_does_not_fit_stands_with_its_severest_rung() -> None:
    first, *rest = found(400)
    assert first.trial.changes == {"train.gradient_checkpointing": True, "train.row_tokens": 1024}
    assert [(one.ladder.name, one.fits) for one in rest] == [("smaller rows", False)]


def test_changes_of_the_model_are_tried_last() -> None:
    tried = found(190)
    assert tried[0].trial.changes == {
        "train.gradient_checkpointing": True, "train.row_tokens": 256, "data.max_length": 256
    }  # fmt: skip
    assert not tried[0].ladder.exact
    assert all(not one.fits for one in tried[1:])


def test_nothing_fits() -> None:
    tried = found(50)
    assert tried and not any(one.fits for one in tried)
    assert "a smaller adapter" in [one.ladder.name for one in tried]


def test_bfloat16_is_offered_to_wider_models_only() -> None:
    assert "bfloat16" not in [ladder.name for ladder in ladders(FACTS)]
    wide = Facts(row_tokens=2048, longest=512, layers=8, twice=8, dtype="float32")
    assert "bfloat16" in [ladder.name for ladder in ladders(wide)]
    assert all("train.gradient_checkpointing" not in rung for ladder in ladders(wide) for rung in ladder.rungs)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(16, 9000), st.integers(8, 9000), st.integers(0, 8), st.sampled_from(["float32", "bfloat16"]),
    st.booleans(), st.integers(1, 10_000),
)  # fmt: skip
def test_an_answer_fits_and_nothing_milder_on_its_ladder_does(
    row_tokens: int, longest: int, twice: int, dtype: str, lean: bool, limit: int
) -> None:
    optimizer: list[Changes] = [{"train.optimizer_in_backward": True}] if lean else []
    facts = Facts(row_tokens, longest, 8, twice, dtype, optimizer, [{"adapter.r": 4}, {"adapter.r": 2}])
    for tried in found(limit, facts):
        rungs = list(tried.ladder.rungs)
        at = rungs.index(tried.trial.changes)
        sizes = [size(rung, facts) for rung in rungs]
        assert tried.fits == (sizes[at] <= limit)
        assert tried.fits or at == len(rungs) - 1
        if tried.fits and sizes == sorted(sizes, reverse=True):
            assert at == 0 or sizes[at - 1] > limit
        assert all(rung.get("train.row_tokens", 0) <= row_tokens for rung in rungs)
