"""A step whose memory ended: the error, and what is let go before it is tried again."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from lorikeet.base.errors import TrainingError
from lorikeet.base.heap import give_back
from lorikeet.base.log import note
from lorikeet.base.memory_errors import memory_ended
from lorikeet.base.nouns import Batch
from lorikeet.train.halves import halves

Found = TypeVar("Found")


class OutOfMemory(TrainingError):
    """Memory ended in a step. `row`: which micro-batch was computed; None: the weights were being moved. `by`: what
    sets the limit, where that is known."""

    def __init__(self, row: int | None, tokens: int, reason: str, by: str = ""):
        self.row, self.tokens, self.reason, self.by = row, tokens, reason, by
        if row is None:
            super().__init__(
                "memory ended while the weights were moved, so the step is half done; earlier checkpoints are whole",
                given=_given(reason, by),
                try_="train.optim=adamw_8bit, or a smaller adapter",
            )
        else:
            super().__init__(
                f"memory does not suffice for a row of {tokens:,} tokens, and it cannot be split further",
                given=_given(reason, by),
                try_="train.gradient_checkpointing=true, a smaller data.max_length, or quant.kind=nf4",
            )

    def __reduce__(self) -> tuple[type[OutOfMemory], tuple[int | None, int, str, str]]:
        return OutOfMemory, (self.row, self.tokens, self.reason, self.by)


def _given(reason: str, by: str) -> str:
    return f"{by}: {reason}" if by else reason


def in_parts(row: Batch, compute: Callable[[Batch], Found], device: torch.device) -> Iterator[tuple[Batch, Found]]:
    """`compute` of the row, or of its halves where memory ends: (what was computed, the result). Raises OutOfMemory
    where that cannot be split."""
    try:
        found = compute(row)
    except (RuntimeError, MemoryError, OSError) as error:
        failed = memory_ended(error)
        if failed is None:
            raise
    else:
        yield row, found
        return
    release(device)
    smaller = halves(row)
    if smaller is None:
        raise OutOfMemory(0, len(row.tokens), failed)
    note(f"memory ended in a row of {len(row.tokens):,} tokens: it is measured in two")
    for half in smaller:
        yield from in_parts(half, compute, device)


def release(device: torch.device) -> None:
    """Let go of what a failed pass left: cycles of its graph, the heap's free pages, the device's cache."""
    gc.collect()
    give_back()
    if device.type == "cuda":
        torch.cuda.empty_cache()
