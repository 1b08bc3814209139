"""FP4 as bitsandbytes has it: a sign, two bits of exponent, one of mantissa; the largest number is 1.

A code's bits are sign, exponent, mantissa, and the exponents' order is bitsandbytes' own: 0, 1/16, 8, 12, 4, 6, 2, 3
twelfths.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from lorikeet.quant._bitsandbytes import four_parts
from lorikeet.quant._four_bit import FourBit

_TWELFTHS = torch.tensor([0, 0.0625, 8, 12, 4, 6, 2, 3])


class FP4(FourBit):
    """4 bits a weight, as floating point numbers of 2 bits of exponent and 1 of mantissa."""

    kind: Literal["fp4"] = "fp4"
    stored_parts: ClassVar[tuple[str, ...]] = four_parts("fp4")
    table: ClassVar[Tensor] = torch.cat((_TWELFTHS, -_TWELFTHS)) / 12
