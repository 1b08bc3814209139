"""How many tokens one packed row may hold: decided from memory, once, and written into the run's recipe.

Rows longer than a few thousand tokens are no faster (the matmuls are large enough), they only keep more.
"""

from __future__ import annotations

import torch

from lorikeet.base.machine import memory
from lorikeet.models.causal_lm import Shape

SHARE = 0.25  # of all memory, for what a row keeps for its backward pass
LEAST, MOST = 256, 2048


def total_memory_bytes(device: torch.device) -> int:
    """All memory of the device; for the CPU the machine's, or what the container may use of it. Not what is free now,
    so that it repeats."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory()[0]


def default_row_tokens(shape: Shape, dtype: torch.dtype, device: torch.device, *, gradient_checkpointing: bool) -> int:
    """Tokens of a row that fits: a multiple of 256 within LEAST..MOST."""
    size = torch.empty(0, dtype=dtype).element_size()
    attention = (4 * shape.heads + 3 * shape.kv_heads) * shape.head_dim
    per_layer = size * (6 * shape.width + attention + 3 * shape.ffn_width)  # one token, kept for backward
    per_token = per_layer * (1 if gradient_checkpointing else shape.layers) + size * shape.width * shape.layers
    return max(LEAST, min(MOST, int(SHARE * total_memory_bytes(device) / per_token) // 256 * 256))
