"""Dense copies of quantised weights, kept while replies are made.

A training step makes a weight dense twice and multiplies thousands of tokens with it. A new token of a reply is one
row: making the weight dense costs more than the product. Where a kernel multiplies few rows with the weight as it is
kept (`FrozenWeight.few_rows`) and the processor has instructions for bfloat16, that is about as fast as with a dense
one, and no copy is wanted. Elsewhere, and for passes of more rows than that, the dense form is kept from its first use
on while replies are made, where the copies of all such weights and the cache of keys and values leave an eighth of the
memory free; `generate.dequantize` says always, or never. The copies are what `dense` answers anyway, so no reply
depends on them. They are gone when the block ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lorikeet.adapters.lora import LoraGroup
from lorikeet.base.heap import give_back
from lorikeet.base.machine import memory
from lorikeet.kernels import few_rows
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.linear import LinearGroup
from lorikeet.quant._contract import FrozenWeight

Dequantize = Literal["auto"] | bool
RESERVE = 1 / 8  # of all memory stays free: activations, logits and other processes want some
GIB = 1 << 30


@dataclass(frozen=True)
class Decision:
    """Whether copies are kept, and the bytes that decided it."""

    keep: bool
    needed: int
    beside: int
    free: int
    reserve: int

    def __str__(self) -> str:
        """In one line, for people."""
        kept = f"dense they take {self.needed / GIB:.2f} GiB"
        room = f"{max(0, self.free - self.reserve - self.beside) / GIB:.2f} GiB are free for that"
        if self.keep:
            return f"quantised weights stay dense while replies are made: {kept}, {room}"
        return f"quantised weights are made dense anew for each token: {kept}, {room} (generate.dequantize)"


def copied_weights(model: CausalLM, asked: Dequantize = True, rows: int = 1) -> list[FrozenWeight]:
    """The weights that are smaller as kept than dense, and have no product of their own; if "auto" is `asked`, none for
    so many rows of new tokens either."""
    size = torch.empty(0, dtype=model.dtype).element_size()
    found = []
    for group in model.groups():
        weight = group.weight
        kept = sum(tensor.numel() * tensor.element_size() for tensor in (*weight.parameters(), *weight.buffers()))
        fused = type(weight).linear is not FrozenWeight.linear
        fused = fused or (asked == "auto" and multiplies_as_kept(group, model.dtype, rows))
        if kept < weight.out_features * weight.in_features * size and not fused:
            found.append(weight)
    return found


def is_plain(group: nn.Module) -> bool:
    """Whether a group is of linears without an adapter, or with LoRA: answering_linears.py computes those."""
    return type(group) is LinearGroup and (group.attached is None or isinstance(group.attached, LoraGroup))


def multiplies_as_kept(group: LinearGroup, dtype: torch.dtype, rows: int) -> bool:
    """Whether so many new tokens are multiplied with this group's weight as it is kept, and about as fast as dense."""
    weight = group.weight
    token = torch.empty(1, weight.in_features, dtype=dtype, device=next(weight.parameters()).device)
    sizes = weight.out_features, weight.in_features
    served = weight.has_few_rows() and few_rows.serves_sizes(token.expand(rows, -1), *sizes)
    return is_plain(group) and served and few_rows.keeps_pace()


def memory_of(device: torch.device) -> tuple[int, int]:
    """(total, free) bytes where weights lie; on CUDA, what PyTorch holds and does not use counts as free."""
    if device.type != "cuda":
        return memory()
    free, total = torch.cuda.mem_get_info(device)
    return total, free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def decide(model: CausalLM, asked: Dequantize, beside: int = 0, rows: int = 1) -> Decision | None:
    """Whether the model's quantised weights are kept dense; None where there are none that are not kept so already.

    `beside`: bytes that making the replies takes besides. `rows`: new tokens of a pass, at most."""
    size = torch.empty(0, dtype=model.dtype).element_size()
    weights = [weight for weight in copied_weights(model, asked, rows) if not is_kept(weight)]
    if not weights:
        return None
    needed = sum(weight.out_features * weight.in_features * size for weight in weights)
    total, free = memory_of(model.device)
    reserve = int(RESERVE * total)
    keep = needed + beside + reserve <= free if asked == "auto" else asked
    return Decision(keep, needed, beside, free, reserve)


def is_kept(weight: FrozenWeight) -> bool:
    """Whether a copy of this one is kept now."""
    return "dense" in vars(weight)


@contextmanager
def dense_copies(model: CausalLM, asked: Dequantize = True, rows: int = 1) -> Iterator[None]:
    """Keep copies of `copied_weights` inside the block. Inside another such block it changes nothing."""
    weights = [weight for weight in copied_weights(model, asked, rows) if not is_kept(weight)]
    for weight in weights:
        vars(weight).update(zip(("dense", "rows"), _keeping(weight, model.dtype)))
    try:
        yield
    finally:
        for weight in weights:
            del vars(weight)["dense"], vars(weight)["rows"]
        if weights:
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
