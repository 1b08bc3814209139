"""The bytes that bitsandbytes made of two weights, from bitsandbytes.json."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

MADE = json.loads(Path(__file__).with_name("bitsandbytes.json").read_text())


def tensor(text: str, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=dtype)


def weight(which: int) -> Tensor:
    """[2, 128] or [1, 512], float32."""
    return tensor(MADE["weights"][which], torch.float16).float().view(((2, 128), (1, 512))[which])
