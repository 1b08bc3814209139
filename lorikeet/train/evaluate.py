"""Evaluation through the same loss as training: held-out loss, perplexity and token accuracy, keeping no logits.

What is measured on replies (infer/scores.py) stands beside it, by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from lorikeet.base.nouns import Batch
from lorikeet.base.options import Options
from lorikeet.models.causal_lm import CausalLM
from lorikeet.ops.linear_cross_entropy import HeadLoss
from lorikeet.train.out_of_memory import in_parts
from lorikeet.train.step import batch_loss

Metric = Literal["exact_match", "ended", "rouge", "chrf"]
MEASURED = ("loss", "perplexity", "token_accuracy")  # at every evaluation
SCORES: dict[str, tuple[str, ...]] = {  # what each metric of replies brings
    "exact_match": ("exact_match",),
    "ended": ("ended",),
    "rouge": ("rouge1", "rouge2", "rougeL"),
    "chrf": ("chrf",),
}


class EvaluateOptions(Options):
    """The recipe's `evaluate` section."""

    before: bool = Field(True, description="Measure the validation loss before the first step too.")
    samples: int = Field(3, ge=0, description="Validation prompts answered before and after, for the report.")
    sample_steps: int | None = Field(
        None, ge=1, description="Answer the report's prompts every so many steps too (evaluate.samples of them)."
    )
    metrics: list[Metric] = Field(
        [],
        description="Measured on replies to validation prompts at each evaluation: exact_match, ended (they stop by "
        "themselves), rouge, chrf. The last two need `pip install 'lorikeet-llm[eval]'`.",
    )
    prompts: int = Field(32, ge=1, description="How many validation prompts are answered for `metrics`.")

    @field_validator("metrics")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(value))


@dataclass(frozen=True)
class EvalResult:
    loss: float  # mean over the trained weight
    perplexity: float  # exp(loss)
    token_accuracy: float  # share of trained tokens that are the most likely ones
    trained_tokens: int  # predictions made; one that conversations share counts once
    tokens: int
    scores: dict[str, float] = field(default_factory=dict)  # of replies

    def as_row(self) -> dict[str, float]:
        """All of it by name."""
        return {name: value for name, value in vars(self).items() if name != "scores"} | self.scores

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> EvalResult:
        """The inverse, from a row that may say more. JSON has no infinity: a perplexity beyond numbers is null."""
        own = {one.name: row[one.name] for one in fields(cls) if one.name != "scores"}
        own["perplexity"] = math.inf if own["perplexity"] is None else own["perplexity"]
        names = [name for scores in SCORES.values() for name in scores if name in row]
        return cls(**own, scores={name: row[name] for name in names})


def _row_loss(model: CausalLM, row: Batch) -> HeadLoss:
    return batch_loss(model, row.to(model.device))


@torch.no_grad()
def evaluate(model: CausalLM, batches: Iterable[Batch]) -> EvalResult:
    """Run over all batches once."""
    loss, weight, correct, trained, tokens = 0.0, 0.0, 0.0, 0.0, 0
    parts = (part for row in batches for part in in_parts(row, partial(_row_loss, model), model.device))
    for batch, result in parts:
        loss += result.loss.item()
        weight += batch.total_weight
        # a prediction that several conversations share counts for each of them, as its weight does
        correct += (result.correct.cpu()[: len(batch.weights)] * batch.weights).sum().item()
        trained += len(batch.targets)
        tokens += batch.source_tokens
    mean = loss / weight
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return EvalResult(mean, perplexity, correct / weight, int(trained), tokens)
