"""Gradient checkpointing (Chen et al. 2016): keep a block's input, compute the block again for its gradients.

Who asks for it has little memory, so what the blocks free goes back to the system, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lorikeet.base.heap import Growth

_growth = Growth()


def checkpointed(block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """block(*inputs), keeping only the inputs. Random draws are repeated exactly in the second pass."""

    def computed(*given: Any) -> Tensor:
        _growth.look()
        return block(*given)

    return checkpoint(computed, *inputs, use_reentrant=False, preserve_rng_state=True)
