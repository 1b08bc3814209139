"""What A and B are at the start (`init_lora_weights`), with PEFT's names.

true and gaussian: A random, B zero. orthogonal: both random, in directions that cancel. Then the start is the base.

pissa (Meng et al. 2024) and olora (Buyukakyuz 2024) put a part B0 A0 of W into A and B and freeze the rest,
W - s B0 A0. Here W stays as it is, and B0 A0 is kept beside A and B, frozen: W x + s (B A - B0 A0) x is the same
function. So the base stays the base, as quantised as it was (the rest is never formed, nor quantised again; B0 A0 is
taken from the numbers that W is kept as), the start is the base to rounding, and what is saved is plain LoRA of twice
the rank, [A, A0] and [B, -B0], as PEFT's own conversion makes it. It costs the thin products of that rank. With
lora_dropout, the inputs of both parts are dropped: the start is still the base, where PEFT's is not.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from lorikeet.base.errors import RecipeError
from lorikeet.base.rng import derive, torch_rng
from lorikeet.models.linear import FrozenLinear

PLAIN = ("gaussian", "orthogonal")
SPLITTING = ("pissa", "olora")  # W into two parts
_ITERATIONS = re.compile(r"pissa_niter_([1-9]\d?)")


def known(how: bool | str) -> bool:
    """Whether it is a way to start."""
    return how is True or how in (*PLAIN, *SPLITTING) or (isinstance(how, str) and bool(_ITERATIONS.fullmatch(how)))


def splits(how: bool | str) -> bool:
    """Whether A and B start as a part of W."""
    return how in SPLITTING or (isinstance(how, str) and bool(_ITERATIONS.fullmatch(how)))


def first_values(
    linear: FrozenLinear, how: bool | str, rank: int, factor: float, dtype: torch.dtype, seed: int
) -> tuple[Tensor, Tensor]:
    """A [R, in] and B [out, R] of a linear in `dtype`, drawn from `seed` and its name. Raises RecipeError for a rank
    that this start does not have."""
    generator = torch_rng(seed, "lora_A", linear.name)
    a = torch.empty(rank, linear.in_features, dtype=dtype)
    b = torch.zeros(linear.out_features, rank, dtype=dtype)
    if splits(how):
        a, b = _part_of_the_weight(linear, str(how), rank, factor, dtype, seed)
    elif how == "orthogonal":
        if rank % 2:
            raise RecipeError(
                "adapter.r: has to be even for init_lora_weights=orthogonal",
                given=rank,
                allowed="an even rank",
                try_=f"adapter.r={rank + 1}",
            )
        mixed, _ = torch.linalg.qr(torch.randn(rank, rank, dtype=dtype, generator=generator))
        a = (torch.randn(linear.in_features, rank // 2, dtype=dtype, generator=generator) @ mixed[0::2]).T / 10
        b = torch.randn(rank // 2, linear.out_features, dtype=dtype, generator=generator).T @ mixed[1::2] / 10
    elif how == "gaussian":
        a.normal_(0, 1 / rank, generator=generator)
    else:
        bound = 1 / math.sqrt(linear.in_features)
        a.uniform_(-bound, bound, generator=generator)
    return a.contiguous().to(linear.device), b.contiguous().to(linear.device)


def _part_of_the_weight(
    linear: FrozenLinear, how: str, rank: int, factor: float, dtype: torch.dtype, seed: int
) -> tuple[Tensor, Tensor]:
    """A0 and B0. PiSSA: the largest `rank` singular values, their roots on both sides; OLoRA: the first columns of a
    QR decomposition."""
    most = min(linear.in_features, linear.out_features)
    if rank > most:
        raise RecipeError(
            f"adapter.r: {linear.name} has no {rank} directions to start from with init_lora_weights={how}",
            given=rank,
            allowed=f"at most {most}",
            try_=f"adapter.r={most}",
        )
    weight = linear.dense(dtype)
    if how == "olora":
        q, r = torch.linalg.qr(weight)
        return r[:rank], q[:, :rank]
    if match := _ITERATIONS.fullmatch(how):
        with torch.random.fork_rng(devices=[]):  # it draws from torch's own generator
            torch.manual_seed(derive(seed, "pissa", linear.name))
            u, s, v = torch.svd_lowrank(weight, rank, niter=int(match[1]))
        vh = v.T
    else:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    roots = (s[:rank] / factor).sqrt()
    return roots[:, None] * vh[:rank], u[:, :rank] * roots
