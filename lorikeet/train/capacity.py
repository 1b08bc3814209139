"""How many tokens one packed row may hold: decided from memory, once, and written into the run's recipe.

Longer rows are faster (fewer passes over the weights, fewer calls) and keep more for the backward pass. On two cores,
six steps of SmolLM2 on alpaca rows, twice in turns: 594 and 695 tokens/s and 1.16 GiB with 1,536; 677 and 702 and 1.24
with 1,792; 756 and 707 and 1.31 with 2,048. With the C library's heap, 624 and 639 and 1.37 with 1,536.
"""

from __future__ import annotations

import torch

from lorikeet.base.heap import map_large
from lorikeet.base.machine import memory
from lorikeet.kernels import allocator
from lorikeet.models.causal_lm import Shape

LARGE_STATES = 4 << 20  # bytes of a row's hidden states from which its tensors are mapped one by one
SHARE = 0.25  # of all memory, for what a row keeps for its backward pass
LEAST, MOST, MOST_IN_HEAP = 256, 2048, 1536


def total_memory_bytes(device: torch.device) -> int:
    """All memory of the device; for the CPU the machine's, or what the container may use of it. Not what is free now,
    so that it repeats."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory()[0]


def holes_are_lost(shape: Shape, dtype: torch.dtype, device: torch.device, tokens: int) -> bool:
    """Whether the holes that tensors of a row of so many tokens leave behind count as the process's: they lie in the C
    library's heap, and are not mapped one by one."""
    return device.type == "cpu" and not (allocator.holds(device) or _tensors_are_large(shape, dtype, tokens))


def keep_holes_small(shape: Shape, dtype: torch.dtype, device: torch.device, tokens: int) -> None:
    """Where large tensors of a row of so many tokens would lie in the C library's heap, have them mapped one by one.

    Two rows of 4,096 tokens of SmolLM2, 15 layers computed twice: 1.98 and 2.03 GiB in the heap, and 1.42 mapped. Rows
    of 1,536 took a quarter more time mapped, for 1.11 GiB instead of 1.28."""
    if device.type == "cpu" and not allocator.holds(device) and _tensors_are_large(shape, dtype, tokens):
        map_large(LARGE_STATES)


def _tensors_are_large(shape: Shape, dtype: torch.dtype, tokens: int) -> bool:
    return tokens * shape.width * dtype.itemsize >= LARGE_STATES


def default_row_tokens(
    shape: Shape, dtype: torch.dtype, device: torch.device, *, gradient_checkpointing: bool | int
) -> int:
    """Tokens of a row that fits: a multiple of 256, at least LEAST."""
    size = torch.empty(0, dtype=dtype).element_size()
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim  # q, k, v and the output
    per_layer = size * (2 * shape.width + attention + 2 * shape.ffn_width)  # one token, kept for backward
    twice = shape.layers if gradient_checkpointing is True else min(shape.layers, int(gradient_checkpointing))
    per_token = per_layer * (shape.layers - twice + bool(twice)) + size * shape.width * twice
    most = MOST_IN_HEAP if device.type == "cpu" and not allocator.holds(device) else MOST
    return max(LEAST, min(most, int(SHARE * total_memory_bytes(device) / per_token) // 256 * 256))
