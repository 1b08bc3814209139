"""One seed tree: every random choice is a pure function of (seed, what it is for, where it stands).

So nothing has to be saved to resume: order, initialisation and dropout of step 400 follow from the seed and 400.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(seed: int, *path: object) -> int:
    """A 63-bit seed for the purpose named by `path`, e.g. derive(0, "order", epoch)."""
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_rng(seed: int, *path: object) -> np.random.Generator:
    """A Philox generator: its stream is the same on every machine and numpy version."""
    return np.random.Generator(np.random.Philox(derive(seed, *path)))


def torch_rng(seed: int, *path: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device`, seeded for the purpose named by `path`."""
    return torch.Generator(device=device).manual_seed(derive(seed, *path))
