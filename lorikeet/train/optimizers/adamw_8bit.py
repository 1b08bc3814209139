"""AdamW whose states are one byte each, for a quarter of the memory (Dettmers et al. 2022)."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lorikeet.train.optimizers import _bitsandbytes
from lorikeet.train.optimizers._adamw_8bit import BlockwiseAdamW


class AdamW8bit(BlockwiseAdamW):
    """AdamW with states of one byte a number, quantised in blocks of 256; large tensors only."""

    kind: Literal["adamw_8bit"] = "adamw_8bit"
    also: ClassVar[tuple[str, ...]] = ("adamw_bnb_8bit",)

    def remark(self, device: torch.device, parameters: Collection[Tensor] = ()) -> str | None:
        found = super().remark(device, parameters)
        if found is not None or device.type != "cuda" or _bitsandbytes.installed():
            return found
        kernel = "bitsandbytes has a kernel for them: pip install 'lorikeet-llm[bnb]'"
        return f"train.optim: plain PyTorch computes {self.kind}'s steps; {kernel}"
