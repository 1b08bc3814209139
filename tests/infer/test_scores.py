"""Scores of replies are the libraries' own; the names are those that the recipe knows."""

from __future__ import annotations

import typing

import pytest

from lorikeet.infer.scores import KNOWN, Words, score
from lorikeet.train.evaluate import SCORES, Metric

PAIRS = [("The cat sat on the mat.", "A cat sat on a mat!"), (" Paris ", "Paris"), ("", "nothing"), ("x y", "x y")]


def rows() -> list[dict]:
    made = [{"reply": a, "reference": b, "finish_reason": "stop" if a else "length"} for a, b in PAIRS]
    return [*made, {"reply": "alone", "reference": None, "finish_reason": "stop"}]


def test_the_recipe_s_names_are_those_that_are_known() -> None:
    assert list(KNOWN) == list(SCORES) == list(typing.get_args(Metric))
    found = score(rows(), list(KNOWN))
    assert list(found) == [name for names in SCORES.values() for name in names]


def test_exact_match_ends_and_missing_references() -> None:
    marked = rows()
    assert score(marked, ["exact_match", "ended"]) == {"exact_match": 0.5, "ended": 0.8}
    assert [row.get("exact_match") for row in marked] == [False, True, False, True, None]
    assert score([{"reply": "a", "reference": None, "finish_reason": "stop"}], ["exact_match", "chrf"]) == {}


def test_rouge_and_chrf_are_the_libraries() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"])
    sacrebleu = pytest.importorskip("sacrebleu")
    found = score(rows(), ["rouge", "chrf"])
    for name in ("rouge1", "rouge2", "rougeL"):
        theirs = [scorer.score(b, a)[name].fmeasure for a, b in PAIRS]
        assert found[name] == pytest.approx(sum(theirs) / len(theirs), abs=1e-12)
    assert found["chrf"] == sacrebleu.corpus_chrf([a for a, _ in PAIRS], [[b for _, b in PAIRS]]).score


def test_words_of_every_script() -> None:
    assert Words().tokenize("Don't stop: Über_naïve 3 cats") == ["don", "t", "stop", "über", "naïve", "3", "cats"]
    assert Words().tokenize("今天 OK です") == ["今", "天", "ok", "で", "す"]
    same = score([{"reply": "今天很好", "reference": "今天好", "finish_reason": "stop"}], ["rouge"])
    assert same["rouge1"] == pytest.approx(6 / 7)
