"""Writes bitsandbytes.json: what bitsandbytes itself makes of two small weights. Run where it is installed.

python tests/quant/make_bitsandbytes.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import torch
from torch import Tensor


def as_hex(tensor: Tensor) -> str:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes().hex()


def weights() -> tuple[Tensor, Tensor]:
    """[2, 128] with a small block and a block of zeros, and [1, 512] with blocks of many sizes: 16 bits hold them."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(-40, 41, (2, 128), generator=generator).float() / 16
    first[0, 64:] /= 8
    first[1, :64] = 0
    sizes = torch.tensor([1, 0.5, 2, 0.25, 1.5, 3, 0.125, 1]).repeat_interleave(64)
    return first, torch.randint(-40, 41, (1, 512), generator=generator).float() / 16 * sizes


def main() -> None:
    first, second = weights()
    made: dict[str, Any] = {"weights": [as_hex(first.half()), as_hex(second.half())]}
    for kind in ("nf4", "fp4"):
        codes, state = bnb.quantize_4bit(first, blocksize=64, quant_type=kind)
        dense = as_hex(bnb.dequantize_4bit(codes, state))
        made[kind] = {"codes": as_hex(codes), "absmax": as_hex(state.absmax), "dense": dense}
        codes, state = bnb.quantize_4bit(second, blocksize=64, quant_type=kind, compress_statistics=True)
        made[f"{kind} doubly"] = {
            "codes": as_hex(codes),
            "absmax": as_hex(state.absmax),
            "scale": as_hex(state.state2.absmax),
            "offset": as_hex(state.offset),
            "dense": as_hex(bnb.dequantize_4bit(codes, state)),
        }
    made["map"] = as_hex(state.state2.code)
    codes, absmax, _ = bnb.int8_vectorwise_quant(first.half())
    dense = as_hex(bnb.int8_vectorwise_dequant(codes, absmax))
    made["int8"] = {"codes": as_hex(codes), "absmax": as_hex(absmax), "dense": dense}
    Path(__file__).with_name("bitsandbytes.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
