"""Gradient checkpointing (Chen et al. 2016): keep a block's input, compute the block again for its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def checkpointed(block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """block(*inputs), keeping only the inputs. Random draws are repeated exactly in the second pass."""
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=True)
