"""Gradients of weights, made where they belong.

Autograd hands a gradient over as a tensor of its own and adds that to what the parameter already holds: for each row
of a step one more tensor as large as the weight, and three passes over it. Inside `straight` the ops of this package
add to the parameter's `grad` themselves and hand nothing over.

Tables (the embedding, the head, which may be one tensor) are the largest: autograd would keep the head's gradient, make
one as large for the embedding, and add them. A pass that moves weights by hooks, which fire when autograd adds, wants
the linears' gradients handed over and the tables' not: those are then moved behind the pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lorikeet.kernels import weight_gradient as compiled

_straight: list[Literal["nothing", "tables", "all"]] = ["nothing"]


@contextmanager
def straight(what: Literal["tables", "all"]) -> Iterator[None]:
    """In the backward passes of this block gradients of tables, or of all weights, go straight into `grad`. The block
    asks for the gradients of all parameters, as Tensor.backward does, and for no second derivatives."""
    before, _straight[0] = _straight[0], what
    try:
        yield
    finally:
        _straight[0] = before


def weight_gradient(weight: Tensor, dy: Tensor, x: Tensor) -> Tensor | None:
    """dy^T x for dy [T, out] and x [T, in], in the dtype of the trained `weight` [out, in]; None where `weight.grad`
    has taken it."""
    taken = weight.grad if _straight[0] == "all" and weight.is_leaf else None
    found = product(dy, x, weight.dtype, taken)
    return None if taken is not None else found


def product(dy: Tensor, x: Tensor, dtype: torch.dtype, into: Tensor | None = None) -> Tensor:
    """dy^T x [out, in] in `dtype`, added to `into` where that is given, which is then returned."""
    fits = into is None or into.is_contiguous()
    if dtype == torch.float32 and fits and compiled.serves(dy, x):
        return compiled.weight_gradient(dy, x, into)
    found = dy.T @ x
    return found.to(dtype) if into is None else into.add_(found)


def table_gradient(table: Tensor, gradient: Tensor, scale: Tensor) -> Tensor | None:
    """`scale` times the gradient of a table, in the table's dtype; None where `table.grad` has taken it, for which the
    gradient itself is used up."""
    if _straight[0] == "nothing" or not table.is_leaf:
        return (gradient * scale).to(table.dtype)
    gradient = gradient.mul_(scale).to(table.dtype)
    if table.grad is None:
        table.grad = gradient
    else:
        table.grad.add_(gradient)
    return None


class TableRows(torch.autograd.Function):
    """The rows of a table that trains; see `table_rows`."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(tokens, table)
        return F.embedding(tokens, table).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tokens, table = ctx.saved_tensors
        rows = grads[0].to(table.dtype)
        # elsewhere than on a CPU, index_add_ would add in any order
        if _straight[0] == "nothing" or not table.is_leaf or table.device.type != "cpu":
            return None, torch.ops.aten.embedding_dense_backward(rows, tokens, len(table), -1, False), None
        if table.grad is None:
            table.grad = torch.zeros_like(table)
        table.grad.index_add_(0, tokens, rows)
        return None, None, None


def table_rows(tokens: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows [T, D] in `dtype` of a table [V, D], for tokens [T]."""
    if table.requires_grad and torch.is_grad_enabled():
        return TableRows.apply(tokens, table, dtype)
    return F.embedding(tokens, table).to(dtype)
