"""A packed row as two rows, for when it does not fit: the same loss and the same gradient from less memory at once.

A row is laid out depth first, so everything from a cut on shares only what is an ancestor of the token at the cut. The
second half is that tail with those ancestors before it once more. A prediction stays where the state that makes it
stands first; a repeated prefix predicts nothing, so nothing counts twice.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lorikeet.base.nouns import Batch


def halves(row: Batch) -> tuple[Batch, ...] | None:
    """The row cut between two conversations where the longer part is shortest; a part that predicts nothing is left
    out, and its tokens are counted with the other's. None for a row that no cut makes shorter: one conversation, or
    several that hardly differ."""
    cut = _best_cut(row)
    if cut is None:
        return None
    first, second = _head(row, cut), _tail(row, cut)
    parts = [part for part in (first, second) if len(part.targets)] or [first]
    return tuple(parts) if len(parts) == 2 else (replace(parts[0], source_tokens=row.source_tokens),)


def repeated(row: Batch, at: int) -> Tensor:
    """The indices of the tokens before `at` that what stands there continues."""
    return torch.nonzero(row.visible_until[:at] > at)[:, 0]


def conversations(row: Batch) -> list[Tensor]:
    """The indices of each conversation's tokens, of those that no other continues."""
    ends = torch.nonzero(row.visible_until.cpu() == torch.arange(1, len(row.tokens) + 1))[:, 0].tolist()
    return [torch.cat([repeated(row, end), torch.tensor([end])]) for end in ends]


def _best_cut(row: Batch) -> int | None:
    """Between a conversation's last token and what follows."""
    until, total = row.visible_until.cpu(), len(row.tokens)
    best: tuple[int, int] | None = None
    for end in torch.nonzero(until[:-1] == torch.arange(1, total))[:, 0].tolist():
        cut = end + 1
        longer = max(cut, total - cut + int((until[:cut] > cut).sum()))
        if longer < total and (best is None or longer < best[0]):
            best = longer, cut
    return None if best is None else best[1]


def _head(row: Batch, cut: int) -> Batch:
    mine = row.predict_at < cut
    tail = _texts(row, cut)
    return replace(
        row,
        tokens=row.tokens[:cut],
        positions=row.positions[:cut],
        visible_until=row.visible_until[:cut].clamp(max=cut),
        predict_at=row.predict_at[mine],
        targets=row.targets[mine],
        weights=row.weights[mine],
        total_weight=float(row.weights[mine].sum(dtype=torch.float64)),
        source_tokens=row.source_tokens - tail,
        adapter_index=None if row.adapter_index is None else row.adapter_index[:cut],
    )


def _tail(row: Batch, cut: int) -> Batch:
    before, mine = repeated(row, cut), row.predict_at >= cut
    back = cut - len(before)  # by how much the tail moves

    def joined(tensor: Tensor) -> Tensor:
        return torch.cat([tensor[before], tensor[cut:]])

    return replace(
        row,
        tokens=joined(row.tokens),
        positions=joined(row.positions),
        visible_until=joined(row.visible_until) - back,
        predict_at=row.predict_at[mine] - back,
        targets=row.targets[mine],
        weights=row.weights[mine],
        total_weight=float(row.weights[mine].sum(dtype=torch.float64)),
        source_tokens=_texts(row, cut),
        adapter_index=None if row.adapter_index is None else joined(row.adapter_index),
    )


def _texts(row: Batch, cut: int) -> int:
    """Tokens of the conversations that end behind the cut, each as if alone."""
    behind = torch.arange(cut, len(row.tokens))
    ends = behind[row.visible_until[cut:] == behind + 1]
    return int((row.positions[ends] + 1).sum())
