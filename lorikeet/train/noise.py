"""What keeps a network from learning rows by heart: noise and dropout on what enters it, dropout in attention, targets
that are not quite certain. In training only; evaluation and replies know none of it.

Every draw follows from the step's seed, the conversation's own tokens and the place in it. So rows may be packed in any
way, and a run that goes on draws what it would have drawn. A text that conversations share would have to be drawn
for each of them: while anything is drawn, no prefix is shared.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn

from lorikeet.base.errors import RecipeError
from lorikeet.base.nouns import Batch
from lorikeet.base.option_types import Amount
from lorikeet.base.options import Options
from lorikeet.base.rng import derive, torch_rng
from lorikeet.models.causal_lm import CausalLM
from lorikeet.ops.attention import PackedView
from lorikeet.ops.dropped_attention import DroppedView, Text


class NoiseOptions(Options):
    """The part of the recipe's `train` section that makes learning harder."""

    neftune_noise_alpha: Amount = Field(
        0.0,
        description="Noise on embeddings (NEFTune), uniform within alpha / sqrt(tokens of the conversation x width); "
        "usually 5 to 15.",
    )
    embedding_dropout: float = Field(0.0, ge=0, lt=1, description="Probability to drop a number of an embedding.")
    attention_dropout: float = Field(
        0.0, ge=0, lt=1, description="Probability that a token does not look at another. Slow: plain PyTorch."
    )
    label_smoothing_factor: float = Field(
        0.0, ge=0, lt=1, description="Share of each target that is spread over the whole vocabulary."
    )

    @property
    def drawn(self) -> list[str]:
        """The options by which something is drawn for each conversation."""
        return [
            name for name in ("neftune_noise_alpha", "embedding_dropout", "attention_dropout") if getattr(self, name)
        ]

    @property
    def draws(self) -> bool:
        """Whether anything is drawn for each conversation, so that none may share a prefix."""
        return bool(self.drawn)

    def remark(self) -> str | None:
        """A line for a person who asked for something slow."""
        if not self.attention_dropout:
            return None
        return "train.attention_dropout: attention is computed one conversation at a time, by no compiled kernel"


QUIET = NoiseOptions()


def check_noise(options: NoiseOptions, refusal: str | None) -> None:
    """Raise RecipeError where something is drawn, and `refusal` says why the adapter has no place for it."""
    if options.drawn and refusal is not None:
        name = options.drawn[0]
        raise RecipeError(
            f"train.{name}: {refusal}",
            given=getattr(options, name),
            try_=f"leave train.{name} out, or another adapter.kind",
        )


def texts(batch: Batch, seed: int) -> list[Text]:
    """The conversations of a row without shared prefixes, and a seed for each: one that stands twice has one seed."""
    tokens = batch.tokens.cpu()
    starts = torch.nonzero(batch.positions == 0)[:, 0].tolist()
    found = []
    for start, stop in zip(starts, [*starts[1:], len(tokens)]):
        content = hashlib.sha256(tokens[start:stop].numpy().tobytes()).hexdigest()
        found.append(Text(start, stop, derive(seed, "text", content)))
    return found


@contextmanager
def training_view(model: CausalLM, batch: Batch, options: NoiseOptions, seed: int) -> Iterator[PackedView]:
    """The row's view, for one forward pass with the noise of `options`.

    Raises RecipeError where the network asks no view for attention, or embeds other tokens than the row's."""
    if not options.draws:
        yield PackedView(batch.visible_until, batch.positions)
        return
    found = texts(batch, seed)
    view = PackedView(batch.visible_until, batch.positions)
    dropped = None
    if options.attention_dropout:
        view = dropped = DroppedView(batch.visible_until, batch.positions, found, options.attention_dropout)
    with _at_the_embedding(model, found, options):
        yield view
    if dropped is not None and not dropped.asked:
        raise RecipeError(
            "train.attention_dropout: this network, or this adapter, computes attention where nothing can be dropped",
            given=options.attention_dropout,
            try_="train.attention_dropout=0",
        )


@contextmanager
def _at_the_embedding(model: CausalLM, found: list[Text], options: NoiseOptions) -> Iterator[None]:
    """While the block runs, what the embedding gives is disturbed."""
    if not (options.neftune_noise_alpha or options.embedding_dropout):
        yield
        return

    def disturb(_module: nn.Module, _inputs: object, rows: Tensor) -> Tensor:
        flat = rows.view(-1, rows.shape[-1])
        if len(flat) != found[-1].stop:
            raise RecipeError(
                "train.neftune_noise_alpha and train.embedding_dropout: tokens enter this network that are no row's",
                given=f"{len(flat)} tokens for a row of {found[-1].stop}",
                try_="leave them out, or another adapter.kind",
            )
        return disturbed(flat, found, options).view(rows.shape)

    handle = model.embedder().register_forward_hook(disturb)
    try:
        yield
    finally:
        handle.remove()


def disturbed(rows: Tensor, found: list[Text], options: NoiseOptions) -> Tensor:
    """rows [T, D], an embedding's, with noise (Jain et al. 2023), then dropout."""
    width = rows.shape[-1]
    if options.neftune_noise_alpha:
        parts = []
        for text in found:
            most = options.neftune_noise_alpha / math.sqrt(text.length * width)
            parts.append(_uniform(text, "neftune", width, rows.device).mul_(2 * most).sub_(most))
        rows = rows + torch.cat(parts).to(rows.dtype)
    if p := options.embedding_dropout:
        keep = torch.cat([_uniform(text, "embedding", width, rows.device) >= p for text in found])
        rows = rows * keep / (1 - p)
    return rows


def _uniform(text: Text, purpose: str, width: int, device: torch.device) -> Tensor:
    """[L, D] float32 in [0, 1)."""
    generator = torch_rng(text.seed, purpose, device=device)
    return torch.rand(text.length, width, generator=generator, device=device)
