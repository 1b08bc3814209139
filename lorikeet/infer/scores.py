"""How near replies are to what was asked for: exact match, ROUGE, chrF, and whether they end by themselves.

ROUGE is Google's rouge-score (F1 of rouge1, rouge2, rougeL, mean over replies), chrF is sacrebleu's (over all replies
together, 0 to 100). rouge-score drops every letter that is not a to z; here texts are split into words of any script,
and Chinese, Japanese and Korean ones into characters, which changes nothing for English.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from lorikeet.base.extras import require

Rows = Sequence[dict[str, Any]]
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


class Words:
    """rouge-score's tokenizer for every script."""

    def tokenize(self, text: str) -> list[str]:
        """Words in lower case; characters where words have no space between them."""
        return _WORD.findall(text.lower())


def score(rows: Rows, metrics: Sequence[str]) -> dict[str, float]:
    """Mark each of `rows` {reply, reference, finish_reason} and return what they come to together. A row without a
    reference counts for `ended` alone. Raises MissingExtra for rouge and chrf without their packages."""
    found: dict[str, float] = {}
    for metric in metrics:
        found |= KNOWN[metric](rows)
    return found


def check_installed(metrics: Sequence[str]) -> None:
    """Raise MissingExtra now for a package that `score` would miss later."""
    if "rouge" in metrics:
        _rouge_scorer()
    if "chrf" in metrics:
        _sacrebleu()


def _exact_match(rows: Rows) -> dict[str, float]:
    for row in _judged(rows):
        row["exact_match"] = row["reply"].strip() == row["reference"].strip()
    return _means(rows, "exact_match")


def _ended(rows: Rows) -> dict[str, float]:
    for row in rows:
        row["ended"] = row["finish_reason"] == "stop"
    return _means(rows, "ended")


def _rouge(rows: Rows) -> dict[str, float]:
    names = ("rouge1", "rouge2", "rougeL")
    scorer = _rouge_scorer().RougeScorer(names, tokenizer=Words())
    for row in _judged(rows):
        row |= {name: one.fmeasure for name, one in scorer.score(row["reference"], row["reply"]).items()}
    return _means(rows, *names)


def _chrf(rows: Rows) -> dict[str, float]:
    sacrebleu, judged = _sacrebleu(), _judged(rows)
    for row in judged:
        row["chrf"] = sacrebleu.sentence_chrf(row["reply"], [row["reference"]]).score
    if not judged:
        return {}
    whole = sacrebleu.corpus_chrf([row["reply"] for row in judged], [[row["reference"] for row in judged]])
    return {"chrf": float(whole.score)}


KNOWN: dict[str, Callable[[Rows], dict[str, float]]] = {
    "exact_match": _exact_match,
    "ended": _ended,
    "rouge": _rouge,
    "chrf": _chrf,
}


def _judged(rows: Rows) -> list[dict[str, Any]]:
    return [row for row in rows if row["reference"] is not None]


def _means(rows: Rows, *names: str) -> dict[str, float]:
    found = {name: [float(row[name]) for row in rows if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def _rouge_scorer() -> Any:
    return require("rouge_score.rouge_scorer", extra="eval", needed_by="evaluate.metrics: rouge")


def _sacrebleu() -> Any:
    return require("sacrebleu", extra="eval", needed_by="evaluate.metrics: chrf")
