"""How many tokens one packed row may hold: decided from memory, once, and written into the run's recipe.

Longer rows are a little faster (fewer passes over the weights, fewer calls) and keep more for the backward pass. On two
cores, four steps of SmolLM2 on alpaca rows: 18.6 and 16.7 s and 1.23 GiB with 1,280, 18.8 s and 1.32 with 1,536, 16.7
and 14.5 s and 1.42 with 1,792, 15.4 s and 1.52 with 2,048.
"""

from __future__ import annotations

import torch

from lorikeet.base.machine import memory
from lorikeet.models.causal_lm import Shape

LARGE_STATES = 4 << 20  # bytes of a row's hidden states from which its tensors are mapped one by one
SHARE = 0.25  # of all memory, for what a row keeps for its backward pass
LEAST, MOST, MOST_ON_CPU = 256, 2048, 1536


def total_memory_bytes(device: torch.device) -> int:
    """All memory of the device; for the CPU the machine's, or what the container may use of it. Not what is free now,
    so that it repeats."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory()[0]


def tensors_are_large(shape: Shape, dtype: torch.dtype, device: torch.device, tokens: int) -> bool:
    """Whether tensors of a row of so many tokens are better mapped one by one than kept in the heap (base/heap.py).

    Two rows of 4,096 tokens of SmolLM2, 15 layers computed twice: 1.98 and 2.03 GiB, and 1.42 with mapping; what it
    costs in time no quiet hour has shown yet. Rows of 1,536 took a quarter more, for 1.11 GiB instead of 1.28."""
    return device.type == "cpu" and tokens * shape.width * dtype.itemsize >= LARGE_STATES


def default_row_tokens(
    shape: Shape, dtype: torch.dtype, device: torch.device, *, gradient_checkpointing: bool | int
) -> int:
    """Tokens of a row that fits: a multiple of 256, at least LEAST."""
    size = torch.empty(0, dtype=dtype).element_size()
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim  # q, k, v and the output
    per_layer = size * (2 * shape.width + attention + 2 * shape.ffn_width)  # one token, kept for backward
    twice = shape.layers if gradient_checkpointing is True else min(shape.layers, int(gradient_checkpointing))
    per_token = per_layer * (shape.layers - twice + bool(twice)) + size * shape.width * twice
    most = MOST_ON_CPU if device.type == "cpu" else MOST
    return max(LEAST, min(most, int(SHARE * total_memory_bytes(device) / per_token) // 256 * 256))
