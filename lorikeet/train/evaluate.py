"""Evaluation through the same loss as training: held-out loss, perplexity and token accuracy, keeping no logits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from pydantic import Field

from lorikeet.base.nouns import Batch
from lorikeet.base.options import Options
from lorikeet.models.causal_lm import CausalLM
from lorikeet.train.step import batch_loss


class EvaluateOptions(Options):
    """The recipe's `evaluate` section."""

    before: bool = Field(True, description="Measure the validation loss before the first step too.")
    samples: int = Field(3, ge=0, description="Validation prompts answered before and after, for the report.")


@dataclass(frozen=True)
class EvalResult:
    loss: float  # mean over the trained weight
    perplexity: float  # exp(loss)
    token_accuracy: float  # share of trained tokens that are the most likely ones
    trained_tokens: int  # predictions made; one that conversations share counts once
    tokens: int


@torch.no_grad()
def evaluate(model: CausalLM, batches: Iterable[Batch]) -> EvalResult:
    """Run over all batches once."""
    loss, weight, correct, trained, tokens = 0.0, 0.0, 0.0, 0.0, 0
    for batch in batches:
        result = batch_loss(model, batch.to(model.device))
        loss += result.loss.item()
        weight += batch.total_weight
        # a prediction that several conversations share counts for each of them, as its weight does
        correct += (result.correct.cpu()[: len(batch.weights)] * batch.weights).sum().item()
        trained += len(batch.targets)
        tokens += batch.source_tokens
    mean = loss / weight
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return EvalResult(mean, perplexity, correct / weight, int(trained), tokens)
