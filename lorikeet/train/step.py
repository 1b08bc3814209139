"""The training step: one function, run by the loop, compared by the tests.

The loss of a step is (sum of token losses x weights over the WHOLE step) / (sum of weights): never a mean of means.
How a step is cut into micro-batches changes nothing but memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from lorikeet import kernels
from lorikeet.base.memory_errors import memory_ended
from lorikeet.base.nouns import Batch
from lorikeet.base.rng import derive
from lorikeet.kernels import linear
from lorikeet.models.causal_lm import CausalLM
from lorikeet.ops.linear_cross_entropy import HeadLoss
from lorikeet.train.noise import QUIET, NoiseOptions, training_view
from lorikeet.train.optim import Stepper
from lorikeet.train.out_of_memory import OutOfMemory

ROUND, ROUND_COMPILED = 64, 32  # lengths of rows and numbers of predictions are multiples of this


@dataclass(frozen=True)
class StepResult:
    loss: float  # mean over the step's weight
    grad_norm: float  # before clipping; NaN where the loss was refused
    tokens: int  # of the conversations as rendered alone
    seconds: float
    moved: bool = True  # False: loss or gradient was refused, and weights and optimizer are as they were
    refused: bool = False  # it was the loss, so there was no whole backward pass


def batch_loss(model: CausalLM, batch: Batch, noise: NoiseOptions = QUIET, seed: int = 0) -> HeadLoss:
    """The weighted sum of a row's token losses. The head sees only the states that predict a trained token.

    token_losses and correct are those of `rounded(batch)`: padding comes last, with weight 0. `noise` is training's;
    what it draws follows from `seed`."""
    batch = rounded(batch, model)
    with training_view(model, batch, noise, seed) as view:
        hidden = model.hidden(batch.tokens, batch.positions, view)
    states = hidden.index_select(0, batch.predict_at)
    found = model.head.loss(states, batch.targets, batch.weights)
    if not noise.label_smoothing_factor:
        return found
    spread = model.head.margin(states, batch.targets, batch.weights)
    return found._replace(loss=found.loss + noise.label_smoothing_factor * spread)


def rounded(batch: Batch, model: CausalLM) -> Batch:
    """The batch with T and N padded to multiples of ROUND, or of ROUND_COMPILED: one more conversation that nobody
    learns from.

    oneDNN makes and keeps a kernel for every new matmul shape (benchmarks/new_shapes.py: twice the time at first
    use, and 3 MiB for each length of a row, for ever); rounded lengths repeat. The compiled products make none, and
    take 32 tokens at a time."""
    known = model.device.type == "cpu" and model.dtype == torch.bfloat16 and kernels.chosen() == "auto"
    multiple = ROUND_COMPILED if known and linear.computes_with() is not None else ROUND
    tokens, predictions = (_missing(len(those), multiple) for those in (batch.tokens, batch.targets))
    end = len(batch.tokens) + tokens
    ramp = torch.arange(tokens, device=batch.positions.device)
    return replace(
        batch,
        tokens=F.pad(batch.tokens, (0, tokens)),
        positions=torch.cat([batch.positions, ramp]),
        visible_until=F.pad(batch.visible_until, (0, tokens), value=end),
        predict_at=F.pad(batch.predict_at, (0, predictions)),
        targets=F.pad(batch.targets, (0, predictions)),
        weights=F.pad(batch.weights, (0, predictions)),
    )


def _missing(count: int, multiple: int) -> int:
    """Up to the next multiple, and to ROUND where there are any: for fewer rows the compiled products are not."""
    return max(-count % multiple, ROUND - count if count else 0)


def train_step(
    model: CausalLM,
    stepper: Stepper,
    micro_batches: Sequence[Batch],
    *,
    learning_rate: float,
    seed: int = 0,
    noise: NoiseOptions = QUIET,
    names: Sequence[str] | None = None,
    accept: Callable[[float], bool] = math.isfinite,
) -> StepResult:
    """Forward, backward and update. `seed` is the step's own: with a micro-batch's name (by default its number) it
    decides dropout and noise, and nothing else does.

    A loss that `accept` refuses, and gradients that are not finite, move nothing. Raises OutOfMemory, without any
    gradient left, where memory ends."""
    start = time.perf_counter()
    names = names or [str(i) for i in range(len(micro_batches))]
    total_weight = sum(batch.total_weight for batch in micro_batches)
    tokens = sum(batch.source_tokens for batch in micro_batches)
    total_loss = 0.0
    stepper.clear()
    for i, (batch, name) in enumerate(zip(micro_batches, names)):
        last = i == len(micro_batches) - 1
        failed = None
        try:
            torch.manual_seed(derive(seed, "micro-batch", name))
            loss = batch_loss(model, batch.to(model.device), noise, seed).loss / total_weight
            if last and not accept(total_loss + loss.item()):
                seconds = time.perf_counter() - start
                return StepResult(total_loss + loss.item(), math.nan, tokens, seconds, moved=False, refused=True)
            stepper.backward(loss, last_at=learning_rate if last else None)
            total_loss += loss.item()
        except (RuntimeError, MemoryError, OSError) as error:
            failed = memory_ended(error)
            if failed is None:
                raise
        if failed is not None:  # behind the except, so that the error's frames hold no tensor any more
            begun = stepper.begun
            loss = None  # type: ignore[assignment]
            stepper.clear()
            raise OutOfMemory(None if begun else i, len(batch.tokens), failed)
    grad_norm = _moved(stepper, learning_rate)
    return StepResult(total_loss, grad_norm, tokens, time.perf_counter() - start, math.isfinite(grad_norm))


def _moved(stepper: Stepper, rate: float) -> float:
    """The update. Raises OutOfMemory where memory ends in it, with the optimizer's new state, say."""
    try:
        return stepper.step(rate)
    except (RuntimeError, MemoryError, OSError) as error:
        failed = memory_ended(error)
        if failed is None:
            raise
    raise OutOfMemory(None, 0, failed)
