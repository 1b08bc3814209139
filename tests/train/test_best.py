"""Which evaluation is the best one, and when patience ends: transformers' rules."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lorikeet.base.errors import RecipeError
from lorikeet.train.best import BestOptions, check_metric, check_reached, judge
from lorikeet.train.evaluate import EvaluateOptions
from lorikeet.train.run import Progress


def judged(values: list[float], name: str = "loss", **options: Any) -> tuple[Progress, list[bool]]:
    done, over = Progress(), []
    for step, value in enumerate(values, 1):
        done.step = step
        over.append(judge(BestOptions(metric_for_best_model=name, **options), done, {name: value}))
    return done, over


def test_less_loss_and_more_of_anything_else_is_better() -> None:
    assert judged([3.0, 1.0, 2.0])[0].best_step == 2
    assert judged([3.0, 1.0, 2.0], "perplexity")[0].best_step == 2
    assert judged([0.1, 0.3, 0.2], "rougeL")[0].best_step == 2
    assert judged([0.1, 0.3, 0.2], "token_accuracy", greater_is_better=False)[0].best_step == 1
    assert BestOptions(metric_for_best_model="eval_loss").metric_for_best_model == "loss"


def test_ties_and_what_is_not_a_number_are_not_better() -> None:
    done, _ = judged([2.0, 2.0, math.nan, math.inf])
    assert (done.best_step, done.waited) == (1, 3)
    done, _ = judged([math.nan, 2.0])
    assert (done.best_step, done.waited) == (2, 0)


def test_patience_ends_after_so_many_that_are_no_better() -> None:
    assert judged([3, 2, 2.5, 2.4, 1.9, 2], early_stopping_patience=2)[1] == [False, False, False, True, False, False]
    # better, but by no more than the threshold: the best one moves on, patience does not begin anew
    done, over = judged([3, 2.95, 2.9], early_stopping_patience=2, early_stopping_threshold=0.1)
    assert over == [False, False, True] and done.best_step == 3


def test_a_metric_that_nobody_measures_is_refused() -> None:
    with pytest.raises(RecipeError, match="metric_for_best_model") as error:
        check_metric(BestOptions(metric_for_best_model="rougeL"), EvaluateOptions())
    assert error.value.try_ == "evaluate.metrics='[rouge]'"
    check_metric(BestOptions(metric_for_best_model="rougeL"), EvaluateOptions(metrics=["rouge"]))
    with pytest.raises(RecipeError, match="metric_for_best_model"):
        check_metric(BestOptions(metric_for_best_model="accuracy"), EvaluateOptions())


@pytest.mark.parametrize("option", [{"load_best_model_at_end": True}, {"early_stopping_patience": 2}])
def test_what_waits_for_an_evaluation_that_never_comes_is_refused(option: dict[str, Any]) -> None:
    for every in (8, 9, 100):  # the one behind the last step has nothing to be compared with
        with pytest.raises(RecipeError, match=f"train.{next(iter(option))}: has no effect") as error:
            check_reached(BestOptions(**option), every, 8)
        assert "8 steps" in str(error.value.given) and error.value.try_ == "train.eval_steps=4, or leave it out"
    with pytest.raises(RecipeError) as error:
        check_reached(BestOptions(**option), 1, 1)
    assert error.value.try_ == "more steps, or leave it out"
    check_reached(BestOptions(**option), 2, 8)


def test_evaluations_that_were_asked_for_and_never_come_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for every in (None, 2, 8):  # the last one is at the end, as of every run
        check_reached(BestOptions(), every, 8)
    assert capsys.readouterr().err == ""
    check_reached(BestOptions(), 100, 8)
    said = " ".join(capsys.readouterr().err.split())
    assert said == "train.eval_steps=100 is beyond the last step, 8: the run is evaluated at its end only"


def test_patience_that_cannot_end_before_the_run_does_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    # evaluations behind steps 2, 4 and 6: the first is the best so far, two more end it
    check_reached(BestOptions(early_stopping_patience=2), 2, 8)
    assert capsys.readouterr().err == ""
    check_reached(BestOptions(early_stopping_patience=3), 2, 8)
    said = " ".join(capsys.readouterr().err.split())
    assert "early_stopping_patience=3 cannot end this run: it needs 4 evaluations before the last step" in said
    assert "there are 3" in said
