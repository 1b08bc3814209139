"""The training step: one function, run by the loop, compared by the tests.

The loss of a step is (sum of token losses x weights over the WHOLE step) / (sum of weights): never a mean of means.
How a step is cut into micro-batches changes nothing but memory.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorikeet.base.nouns import Batch
from lorikeet.base.rng import derive
from lorikeet.models.causal_lm import CausalLM
from lorikeet.ops.attention import PackedView
from lorikeet.ops.linear_cross_entropy import HeadLoss
from lorikeet.train.optim import Stepper


@dataclass(frozen=True)
class StepResult:
    loss: float  # mean over the step's weight
    grad_norm: float  # before clipping
    tokens: int  # of the conversations as rendered alone
    seconds: float


def batch_loss(model: CausalLM, batch: Batch) -> HeadLoss:
    """The weighted sum of a row's token losses. The head sees only the states that predict a trained token."""
    view = PackedView(batch.visible_until, batch.positions)
    hidden = model.hidden(batch.tokens, batch.positions, view)
    return model.head.loss(hidden.index_select(0, batch.predict_at), batch.targets, batch.weights)


def train_step(
    model: CausalLM, stepper: Stepper, micro_batches: Sequence[Batch], *, learning_rate: float, seed: int = 0
) -> StepResult:
    """Forward, backward and update. `seed` is the step's own: it decides dropout and nothing else."""
    start = time.perf_counter()
    total_weight = sum(batch.total_weight for batch in micro_batches)
    total_loss = 0.0
    stepper.clear()
    for i, batch in enumerate(micro_batches):
        torch.manual_seed(derive(seed, "micro-batch", i))
        loss = batch_loss(model, batch.to(model.device)).loss / total_weight
        stepper.backward(loss)
        total_loss += loss.item()
    grad_norm = stepper.step(learning_rate)
    tokens = sum(batch.source_tokens for batch in micro_batches)
    return StepResult(total_loss, grad_norm, tokens, time.perf_counter() - start)
