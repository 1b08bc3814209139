"""Loss and accuracy by group: of whom a token is, or how far into a reply it stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from lorikeet.base.nouns import Batch
from lorikeet.models.causal_lm import CausalLM
from lorikeet.train.step import batch_loss

EDGES = (1, 4, 16, 64, 256)  # the last tokens, counted from 1, of the groups by place in a reply
PLACES = ("1", "2-4", "5-16", "17-64", "65-256", "257-")


def places(weights: np.ndarray) -> np.ndarray:
    """[L] int64: which of PLACES a trained token has within its run of trained tokens, -1 for one not trained."""
    trained = weights > 0
    index = np.arange(len(trained))
    before = np.maximum.accumulate(np.where(trained, -1, index))  # the last token before that is not trained
    return np.where(trained, np.searchsorted(EDGES, index - before), -1)


@torch.no_grad()
def tally(model: CausalLM, rows: Iterable[tuple[Batch, np.ndarray]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{group: {tokens, loss, accuracy}} over the predictions of rows without shared prefixes. With each row the group
    of each prediction [N] int64, -1 for none."""
    sums = np.zeros((len(names), 3))
    for batch, groups in rows:
        result = batch_loss(model, batch.to(model.device))
        count = len(batch.targets)
        found = np.stack([np.ones(count), _numbers(result.token_losses, count), _numbers(result.correct, count)], 1)
        for group in range(len(names)):
            sums[group] += found[groups == group].sum(0)
    return {
        name: {"tokens": int(tokens), "loss": loss / tokens, "accuracy": correct / tokens}
        for name, (tokens, loss, correct) in zip(names, sums)
        if tokens
    }


def _numbers(values: torch.Tensor, count: int) -> np.ndarray:
    return values[:count].double().cpu().numpy()
