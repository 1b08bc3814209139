"""Dense copies of quantised weights, kept while replies are made.

A training step makes a weight dense twice and multiplies thousands of tokens with it. A new token of a reply is one
row: making the weight dense costs more than the product. So while replies are made the dense form is kept from its
first use on, where the copies of all weights fit into a share of the memory that is free; else none is kept. The copies
are what `dense` answers anyway, so no reply depends on them. They are gone when the block ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lorikeet.base.heap import give_back
from lorikeet.base.machine import memory
from lorikeet.models.causal_lm import CausalLM
from lorikeet.quant._contract import FrozenWeight

SHARE = 0.25  # of the memory that is free: the cache of keys and values, and other processes, want some too


def copied_weights(model: CausalLM) -> list[FrozenWeight]:
    """The weights that are smaller as kept than dense, and have no product of their own."""
    size = torch.empty(0, dtype=model.dtype).element_size()
    found = []
    for weight in (group.weight for group in model.groups()):
        kept = sum(tensor.numel() * tensor.element_size() for tensor in (*weight.parameters(), *weight.buffers()))
        fused = type(weight).linear is not FrozenWeight.linear
        if kept < weight.out_features * weight.in_features * size and not fused:
            found.append(weight)
    return found


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory()[1]


@contextmanager
def dense_copies(model: CausalLM) -> Iterator[bool]:
    """Keep copies inside the block; yields whether they are. Inside another such block it changes nothing."""
    weights = [weight for weight in copied_weights(model) if "dense" not in vars(weight)]
    size = torch.empty(0, dtype=model.dtype).element_size()
    needed = sum(weight.out_features * weight.in_features * size for weight in weights)
    if not weights or needed > SHARE * free_bytes(model.device):
        yield False
        return
    for weight in weights:
        vars(weight).update(zip(("dense", "rows"), _keeping(weight, model.dtype)))
    try:
        yield True
    finally:
        for weight in weights:
            del vars(weight)["dense"], vars(weight)["rows"]
        give_back()


def _keeping(
    weight: FrozenWeight, kept: torch.dtype
) -> tuple[Callable[[torch.dtype], Tensor], Callable[[int, int, torch.dtype], Tensor]]:
    """`dense` and `rows` of a weight that remember their answers in the dtype `kept`."""
    plain_dense, plain_rows = weight.dense, weight.rows
    whole: list[Tensor] = []
    parts: dict[tuple[int, int], Tensor] = {}

    def dense(dtype: torch.dtype) -> Tensor:
        if dtype != kept:
            return plain_dense(dtype)
        if not whole:
            whole.append(plain_dense(dtype))
        return whole[0]

    def rows(start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Of a mixture's experts only those that were asked for are kept."""
        if dtype != kept:
            return plain_rows(start, stop, dtype)
        if whole:
            return whole[0][start:stop]
        if (start, stop) not in parts:
            parts[start, stop] = plain_rows(start, stop, dtype)
        return parts[start, stop]

    return dense, rows
