"""NF4 (Dettmers et al. 2023, QLoRA): 16 numbers at equal shares of a normal distribution, 0 among them."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from lorikeet.quant._bitsandbytes import four_parts
from lorikeet.quant._four_bit import FourBit


class NF4(FourBit):
    """4 bits a weight, with numbers that suit weights of a normal distribution (QLoRA)."""

    kind: Literal["nf4"] = "nf4"
    stored_parts: ClassVar[tuple[str, ...]] = four_parts("nf4")
    table: ClassVar[Tensor] = torch.tensor(
        [
            -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
            -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
            0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
        ]
    )  # fmt: skip
