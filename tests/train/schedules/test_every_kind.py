"""Every schedule is the one of the same name in transformers, at every step, and a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lorikeet.base.errors import RecipeError
from lorikeet.base.kinds import kind_class, kinds
from lorikeet.base.option_fields import plain_types
from lorikeet.train.optim import OptimOptions, check_schedule, learning_rate
from lorikeet.train.options import TrainOptions
from lorikeet.train.schedules._contract import Schedule

RATE = 3e-3
# ours (without the kind), where transformers needs other words for the same: theirs
CASES: dict[str, list[tuple[dict[str, Any], dict[str, Any] | None]]] = {
    "linear": [({}, None)],
    "cosine": [({}, None)],
    "constant": [({}, None)],
    "constant_with_warmup": [({}, None)],
    "cosine_with_restarts": [({}, None), ({"num_cycles": 3}, None)],
    "cosine_with_min_lr": [
        ({}, {"min_lr_rate": 0.1}),
        ({"min_lr": 1e-4}, None),
        ({"min_lr_rate": 0.3, "num_cycles": 1.5}, None),
    ],
    "cosine_warmup_with_min_lr": [
        ({}, {"min_lr_rate": 0.1}),
        ({"min_lr": 1e-4}, None),
        ({"min_lr_rate": 0.2, "warmup_lr_rate": 0.05}, None),
    ],
    "polynomial": [({}, None), ({"power": 2.0, "lr_end": 1e-5}, None)],
    "inverse_sqrt": [({}, None), ({"timescale": 7}, None)],
    "warmup_stable_decay": [
        ({"num_decay_steps": 3}, None),
        ({"num_decay_steps": 2, "decay_type": "1-sqrt", "warmup_type": "cosine", "min_lr_ratio": 0.1}, None),
        ({"num_decay_steps": 2, "num_stable_steps": 1, "decay_type": "linear", "warmup_type": "1-sqrt"}, None),
    ],
}
FLAT = [(kind, ours, theirs) for kind, cases in CASES.items() for ours, theirs in cases]


def test_every_kind_is_compared() -> None:
    assert set(CASES) == set(kinds("lorikeet.train.schedules"))


@pytest.mark.parametrize(("kind", "ours", "theirs"), FLAT)
@pytest.mark.parametrize(("steps", "rising"), [(20, 0), (20, 5), (37, 1), (10, 4)])
def test_rates_equal_transformers_at_every_step(kind: str, ours: Any, theirs: Any, steps: int, rising: int) -> None:
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=RATE)
    scheduler = transformers.get_scheduler(
        kind,
        optimizer,
        num_warmup_steps=rising,
        num_training_steps=steps,
        scheduler_specific_kwargs=dict(theirs or ours),
    )
    options = OptimOptions(learning_rate=RATE, lr_scheduler_type={"kind": kind, **ours}, warmup_steps=rising)
    for step in range(steps):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(options, step, steps) == pytest.approx(expected, rel=1e-12, abs=1e-18)
        optimizer.step()
        scheduler.step()


@settings(max_examples=60, deadline=None)
@given(case=st.sampled_from(FLAT), steps=st.integers(1, 60), rising=st.integers(0, 70), data=st.data())
def test_a_rate_is_finite_never_above_the_peak_and_asks_no_other_step(
    case: Any, steps: int, rising: int, data: Any
) -> None:
    kind, ours, _ = case
    options = OptimOptions(learning_rate=RATE, lr_scheduler_type={"kind": kind, **ours}, warmup_steps=rising)
    step = data.draw(st.integers(0, steps - 1))
    rate = learning_rate(options, step, steps)
    assert math.isfinite(rate) and 0 <= rate <= RATE * (1 + 1e-12)
    assert rate == learning_rate(options.model_copy(deep=True), step, steps)


def test_init_max_and_min() -> None:
    schedule = {"kind": "cosine_with_min_lr", "init_lr": 5e-5, "min_lr": 1e-4}
    options = OptimOptions(learning_rate=3e-4, lr_scheduler_type=schedule, warmup_steps=10)
    rates = [learning_rate(options, step, 101) for step in range(101)]
    assert rates[0] == pytest.approx(5e-5) and rates[5] == pytest.approx((5e-5 + 3e-4) / 2)
    assert max(rates) == rates[10] == pytest.approx(3e-4)
    assert rates[10:] == sorted(rates[10:], reverse=True) and 1e-4 < rates[-1] < 1.01e-4


def test_a_stable_run_decays_in_its_last_tenth_where_nothing_is_said() -> None:
    options = OptimOptions(learning_rate=1.0, lr_scheduler_type="warmup_stable_decay", warmup_steps=5)
    rates = [learning_rate(options, step, 100) for step in range(100)]
    assert rates[5:90] == [1.0] * 85 and rates[90] == 1.0 and rates[95] == pytest.approx(0.5) and 0 < rates[99] < 0.1


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"kind": "cosine_with_min_lr", "min_lr": 1e-3}, "min_lr .0.001. is above learning_rate"),
        ({"kind": "cosine_with_min_lr", "init_lr": 1.0}, "init_lr .1. is above learning_rate"),
        ({"kind": "cosine_with_min_lr", "min_lr": 1e-5, "min_lr_rate": 0.1}, "min_lr_rate would have no effect"),
        ({"kind": "cosine_warmup_with_min_lr", "min_lr": 1.0}, "min_lr .1. is above learning_rate"),
        ({"kind": "polynomial", "lr_end": 2e-4}, "has to be below learning_rate"),
        ({"kind": "polynomial", "power": 0}, "greater than 0"),
        ({"kind": "cosine_with_restarts", "num_cycles": 0}, "greater than or equal to 1"),
        ({"kind": "linear", "power": 2}, "Extra inputs"),
        ({"kind": "warmup_stable_decay", "decay_type": "sqrt"}, "1-sqrt"),
    ],
)
def test_rates_that_contradict_each_other_are_refused(schedule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainOptions(learning_rate=2e-4, lr_scheduler_type=schedule)


def test_phases_longer_than_the_run_are_refused() -> None:
    schedule = {"kind": "warmup_stable_decay", "num_decay_steps": 8}
    options = OptimOptions(lr_scheduler_type=schedule, warmup_steps=5)
    check_schedule(options, 13)
    with pytest.raises(RecipeError) as caught:
        check_schedule(options, 12)
    assert "longer than the run of 12 steps" in str(caught.value) and "at most 7" in str(caught.value)


# another value of every option, by kind
OTHERS: dict[str, dict[str, Any]] = {
    "cosine_with_restarts": {"num_cycles": 3},
    "cosine_with_min_lr": {"min_lr": 1e-4, "min_lr_rate": 0.3, "num_cycles": 1.5, "init_lr": 1e-4},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-4, "min_lr_rate": 0.3, "num_cycles": 1.5, "warmup_lr_rate": 0.7},
    "polynomial": {"power": 2.0, "lr_end": 1e-5},
    "inverse_sqrt": {"timescale": 7},
    "warmup_stable_decay": {
        "num_decay_steps": 3, "num_stable_steps": 1, "min_lr_ratio": 0.1, "warmup_type": "cosine",
        "decay_type": "linear", "num_cycles": 1.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("rising", [0, 5])
@pytest.mark.parametrize("given", [{}, {"decay_type": "1-sqrt"}], ids=str)
@pytest.mark.parametrize("kind", kinds("lorikeet.train.schedules"))
def test_a_kind_says_which_of_its_options_do_nothing(kind: str, given: dict[str, Any], rising: int) -> None:
    """What a person wrote and a kind names idle is refused; all else that a person can write changes some rate."""
    fields = kind_class("lorikeet.train.schedules", Schedule, kind).model_fields.keys() - {"kind"}
    assert fields == OTHERS.get(kind, {}).keys()
    if not given.keys() <= fields:
        return

    def rates(**said: Any) -> list[float]:
        options = OptimOptions(lr_scheduler_type={"kind": kind, **given, **said}, warmup_steps=rising)
        return [learning_rate(options, step, 40) for step in range(40)]

    plain = OptimOptions(lr_scheduler_type={"kind": kind, **given}).lr_scheduler_type
    same = {name for name, value in OTHERS.get(kind, {}).items() if rates(**{name: value}) == rates()}
    assert same == plain.idle(warmup=rising > 0).keys()


CORNERS = (0, 1, 10**18, 5e-324, 1e-6, 0.5, 1000.0, 1e6, 1e30)
NUMBERS = [
    (kind, name)
    for kind in kinds("lorikeet.train.schedules")
    for name, field in kind_class("lorikeet.train.schedules", Schedule, kind).model_fields.items()
    if {int, float} & set(plain_types(field))
]


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_whatever_number_an_option_takes_every_rate_is_one(kind: str, name: str) -> None:
    for corner in CORNERS:
        try:
            options = TrainOptions(learning_rate=RATE, lr_scheduler_type={"kind": kind, name: corner}, warmup_steps=2)
        except ValidationError:
            continue
        for steps in (1, 2, 9, 10**18):
            for step in {0, 1, 2, 3, steps // 2, steps - 1}:
                rate = learning_rate(options, step, steps)
                assert math.isfinite(rate) and 0 <= rate <= RATE * (1 + 1e-12), (corner, steps, step, rate)
