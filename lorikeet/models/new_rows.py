"""Rows of new tokens in the embedding and the head: they train, and the tables around them stay frozen.

The tables grow where they must, and a new row begins as the mean of the old ones (Hewitt 2021: it bounds what a token
that was never seen can change). While training, the rows are parameters [n, D] of their own, in float32; what reads a
table whole finds them in it, rounded, since each pass begins by writing them there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorikeet.base.errors import RecipeError
from lorikeet.models.build import Embedding, MappedEmbedding
from lorikeet.models.causal_lm import CausalLM


class NewRows(nn.Module):
    """Rows first .. first + n of a table, as parameters."""

    def __init__(self, table: Tensor, first: int, count: int):
        super().__init__()
        wide = torch.promote_types(table.dtype, torch.float32)
        self.weight = nn.Parameter(table[first : first + count].detach().to(wide, copy=True))
        self.first = first

    def over(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Looked-up rows [T, D] with those of new tokens from here. Decides nothing by the tokens' values."""
        inside = (tokens - self.first).clamp(0, len(self.weight) - 1)
        is_new = (tokens >= self.first) & (tokens < self.first + len(self.weight))
        return torch.where(is_new[..., None], F.embedding(inside, self.weight).to(rows.dtype), rows)

    @torch.no_grad()
    def write(self, table: Tensor) -> None:
        """Put the rows into their places."""
        table[self.first : self.first + len(self.weight)].copy_(self.weight)


def grow(model: CausalLM, first: int, count: int) -> None:
    """Make the tables hold tokens first .. first + count, whose rows become the mean of those before them.

    Raises RecipeError for a network whose embedding cannot be reached."""
    if model.grown == (first, count):
        return
    _into_memory(model)
    embedder = model.embedder()
    if not (isinstance(embedder, Embedding) or type(embedder) is nn.Embedding):
        raise RecipeError(
            "model.add_tokens: this network's embedding does more than look rows up",
            given=type(embedder).__name__,
            allowed="native networks, and those with a plain nn.Embedding",
            try_="model.source=native, where the network is one of Lorikeet's",
        )
    size = max(model.shape.vocab_size, first + count)
    tables: list[nn.Parameter] = [embedder.weight, model.head.weight]  # type: ignore[list-item]
    tables += [] if model.head.bias is None else [model.head.bias]
    for table in {id(one): one for one in tables}.values():
        _exchange(model, table, _grown(table, first, count, size))
    if isinstance(embedder, nn.Embedding):
        embedder.num_embeddings = size
    model.shape, model.grown = replace(model.shape, vocab_size=size), (first, count)


def train_rows(model: CausalLM, first: int, count: int) -> None:
    """Let the rows of the new tokens train in each table that is frozen; one that trains has them in it."""
    embedder, head = model.embedder(), model.head
    table, tied = embedder.weight, embedder.weight is head.weight
    assert isinstance(table, nn.Parameter)
    pairs: list[tuple[NewRows, Tensor]] = []
    if not table.requires_grad:
        rows = NewRows(table, first, count)
        pairs.append((rows, table))
        if isinstance(embedder, Embedding):
            embedder.new_rows = rows
        else:  # not as a child: the rows are no part of what someone's own module saves
            object.__setattr__(embedder, "new_rows", rows)
            embedder.register_forward_hook(lambda module, inputs, found: rows.over(found, inputs[0]))
        if tied:
            head.new_rows = rows
    if not tied and not head.weight.requires_grad:
        head.new_rows = NewRows(head.weight, first, count)
        pairs.append((head.new_rows, head.weight))

    def written(hidden: Callable[..., Tensor], *inputs: Any) -> Tensor:
        for rows, whole in pairs:
            rows.write(whole)
        return hidden(*inputs)

    model.surround(written)


def _grown(table: Tensor, first: int, count: int, size: int) -> nn.Parameter:
    mean = table[:first].mean(0, dtype=torch.promote_types(table.dtype, torch.float32))
    made = torch.zeros(size, *table.shape[1:], dtype=table.dtype, device=table.device)
    made[: len(table)].copy_(table.detach())
    made[first : first + count] = mean.to(table.dtype)
    return nn.Parameter(made, requires_grad=False)


def _exchange(model: CausalLM, old: Tensor, new: nn.Parameter) -> None:
    for module in model.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            if parameter is old:
                setattr(module, key, new)


def _into_memory(model: CausalLM) -> None:
    for module in list(model.modules()):
        for key, child in list(module.named_children()):
            if isinstance(child, MappedEmbedding):
                table = Embedding(child.name, nn.Parameter(child.rows.whole(model.dtype), requires_grad=False))
                table.scale = child.scale
                setattr(module, key, table)
