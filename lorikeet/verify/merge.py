"""What merging changed: a merged model against the one that was trained, on conversations neither has learned from.

The two answer the same rows and the same prompts one after the other. Of the first only its last hidden states at the
trained positions, its head and its replies are kept, which is enough for its exact logits; so no more than one whole
model is ever in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lorikeet.base.nouns import Batch, Example
from lorikeet.data.pack import pack_row, plan_rows
from lorikeet.infer.engine import Engine, Request
from lorikeet.infer.samples import prompt_and_reply
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.models.causal_lm import CausalLM, Head
from lorikeet.ops.attention import PackedView
from lorikeet.tokens._contract import Tokenizer
from lorikeet.train.capacity import default_row_tokens
from lorikeet.train.step import rounded
from lorikeet.verify.divergence import divergence
from lorikeet.verify.limits import Limits


@dataclass(frozen=True)
class Measured:
    """The trained model is the first of two, the merged one the second. Means are over the loss weights."""

    mean_kl: float  # nats per trained token, KL(trained || merged)
    max_kl: float  # at the worst of them
    top1_agreement: float  # share of trained tokens before which both find the same token most likely
    loss_trained: float
    loss_merged: float
    loss_increase: float  # merged - trained; below 0 where merging made it better
    same_replies: float | None  # share of greedy replies that are the same text; None without prompts
    first_difference: float | None  # mean token of a reply at which it leaves the other, of the replies that do
    trained_tokens: int
    prompts: int


@dataclass(frozen=True)
class HeldOut:
    """Conversations as rows for the loss, and the prompts of the first of them."""

    rows: list[Batch]
    prompts: list[list[int]]
    conversations: int


@dataclass(frozen=True)
class Said:
    """All that is kept of a model: what its logits follow from, and what it answered."""

    states: Tensor  # [N, D], on the CPU: before each trained token of all rows
    head: Head
    replies: list[str]


def held_out(examples: Sequence[Example], questions: Sequence[Example], model: CausalLM) -> HeldOut:
    """`examples` laid out for `model`, and the last prompts of `questions`, where replies alone are trained."""
    longest = max(len(example.tokens) for example in examples)
    share = model.shares_within is None or longest <= model.shares_within
    capacity = default_row_tokens(model.shape, model.dtype, model.device, gradient_checkpointing=True)
    rows = plan_rows(examples, row_tokens=capacity, share=share)
    asked = [prompt_and_reply(example)[0] for example in questions]
    return HeldOut([pack_row(row, share=share) for row in rows], asked, len(examples))


@torch.no_grad()
def listen(engine: Engine, asked: HeldOut, options: GenerateOptions) -> Said:
    """Run the model over the rows and let it answer the prompts."""
    model, states = engine.model, []
    for row in asked.rows:
        batch = rounded(row, model).to(model.device)
        hidden = model.hidden(batch.tokens, batch.positions, PackedView(batch.visible_until, batch.positions))
        states.append(hidden[row.predict_at.to(model.device)].cpu())
    replies = [""] * len(asked.prompts)
    for event in engine.generate([Request(i, prompt, options) for i, prompt in enumerate(asked.prompts)]):
        replies[event.name] += event.text
    return Said(torch.cat(states), model.head, replies)


def compare(trained: Said, merged: Said, asked: HeldOut, tokenizer: Tokenizer) -> Measured:
    """How far apart the two are. Their vocabularies must be of one size."""
    targets, weights = (torch.cat([getattr(row, name) for row in asked.rows]) for name in ("targets", "weights"))
    found = divergence(trained.states, trained.head, merged.states, merged.head, targets)
    share = weights.double() / weights.double().sum()
    losses = [(share * one).sum().item() for one in found.losses]
    pairs = list(zip(trained.replies, merged.replies))
    apart = [_first_difference(tokenizer, *pair) for pair in pairs if pair[0] != pair[1]]
    return Measured(
        # equal models may come out at -1e-17; NaN stays NaN in this order, `max(0.0, nan)` would be 0
        mean_kl=max((share * found.kl).sum().item(), 0.0),
        max_kl=max(found.kl.max().item(), 0.0),
        top1_agreement=(share * found.same_top).sum().item(),
        loss_trained=losses[0],
        loss_merged=losses[1],
        loss_increase=losses[1] - losses[0],
        same_replies=1 - len(apart) / len(pairs) if pairs else None,
        first_difference=sum(apart) / len(apart) if apart else None,
        trained_tokens=len(targets),
        prompts=len(pairs),
    )


def _first_difference(tokenizer: Tokenizer, one: str, other: str) -> int:
    """The first token, counted from 1, at which two texts differ; after the end of the shorter where it begins the
    longer one."""
    ids = [tokenizer.encode(text)[0] for text in (one, other)]
    same = (a == b for a, b in zip(*ids))
    return next((i + 1 for i, equal in enumerate(same) if not equal), min(map(len, ids)) + 1)


TITLES = {
    "mean_kl": "mean KL, nats",
    "max_kl": "largest KL, nats",
    "top1_agreement": "same most likely token",
    "loss_trained": "held-out loss, trained",
    "loss_merged": "held-out loss, merged",
    "loss_increase": "increase of the loss",
    "same_replies": "same greedy replies",
    "first_difference": "first different token",
}


def table(measured: Measured, limits: Limits) -> list[str]:
    """The measurements with their limits, one a line, for people."""
    broken, asked = limits.broken(measured), asdict(limits)
    lines = [f"{'':<24}{'measured':>12}   limit"]
    for name, title in TITLES.items():
        value, limit = getattr(measured, name), asked.get(name)
        sign = ">=" if name in Limits.AT_LEAST else "<="
        told = "" if limit is None else f"{sign} {limit:g}"
        verdict = "" if limit is None or value is None else ("   BROKEN" if name in broken else "   kept")
        lines.append(f"{title:<24}{'-' if value is None else f'{value:.4g}':>12}   {told}{verdict}".rstrip())
    prompts = f"{measured.prompts} prompt{'s' * (measured.prompts != 1)}"
    return [*lines, f"over {measured.trained_tokens:,} trained tokens and {prompts}"]


def named(values: Any) -> dict[str, float | None]:
    """The fields of Measured or Limits as plain values."""
    return {field.name: getattr(values, field.name) for field in fields(values)}
