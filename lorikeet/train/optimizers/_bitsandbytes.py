"""bitsandbytes' CUDA kernels on our states, which have its layout: 8-bit AdamW, and memory that the driver pages out.

Only its functions are called. Its optimizer classes keep states of their own, and on a CPU its rounding is not to the
nearest (zero comes back as another number), so neither serves here.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from lorikeet.base import installed as packages
from lorikeet.base.extras import require
from lorikeet.train.optimizers import _blockwise
from lorikeet.train.optimizers._contract import Shared, State

MOMENTS = ("exp_avg", "exp_avg_sq")
PAGED_FROM = 100_000  # smaller tensors are not worth a page, as bitsandbytes has it


def installed() -> bool:
    return packages.version("bitsandbytes") is not None


def computes(device: torch.device, *, paging: bool = False) -> str:
    """What computes there, for a run's identity. Raises MissingExtra for paging on CUDA without the package."""
    if device.type != "cuda" or not (paging or installed()):
        return "torch"
    functions("a paged optimizer" if paging else "train.optim=adamw_8bit")
    return f"bitsandbytes {packages.version('bitsandbytes')}{', paged' if paging else ''}"


def functions(optimizer: str) -> ModuleType:
    """bitsandbytes.functional. Raises MissingExtra."""
    return require("bitsandbytes.functional", extra="bnb", needed_by=f"{optimizer} on CUDA")


def adamw_8bit(parameter: Tensor, gradient: Tensor, state: State, shared: Shared) -> None:
    """One step on codes; state["step"] counts this one."""
    signed, unsigned = (_blockwise.values(signed, parameter.device) for signed in (True, False))
    _prefetch(state)
    functions("train.optim=adamw_8bit").optimizer_update_8bit_blockwise(
        "adam", gradient, parameter, state["exp_avg"], state["exp_avg_sq"], shared.adam_beta1, shared.adam_beta2,
        0.0, 0.0, shared.adam_epsilon, int(state["step"]), shared.rate, signed, unsigned,
        state["exp_avg_absmax"], state["exp_avg_sq_absmax"], shared.weight_decay,
    )  # fmt: skip


def adamw_32bit(parameter: Tensor, gradient: Tensor, state: State, shared: Shared) -> None:
    """One step on float32 states; state["step"] counts this one."""
    _prefetch(state)
    functions("train.optim=paged_adamw_32bit").optimizer_update_32bit(
        "adam", gradient, parameter, state["exp_avg"], shared.adam_beta1, shared.adam_epsilon, int(state["step"]),
        shared.rate, state["exp_avg_sq"], shared.adam_beta2, weight_decay=shared.weight_decay,
    )  # fmt: skip


def paged(name: str, value: Tensor, parameter: Tensor) -> Tensor:
    """A tensor of the state of a `parameter` on CUDA; a large moment goes into memory that device and host share."""
    if name not in MOMENTS or value.numel() < PAGED_FROM:
        return value
    made: Tensor = functions("a paged optimizer").get_paged(*value.shape, dtype=value.dtype, device=parameter.device)
    made.copy_(value)
    return made  # this very tensor: what marks it as paged are attributes


def remark(kind: str, same_as: str, device: torch.device) -> str | None:
    """What to say where nothing can be paged."""
    if device.type == "cuda":
        return None
    return f"train.optim: {device.type} has no paged memory, so {kind} computes what {same_as} does, in ordinary memory"


def _prefetch(state: State) -> None:
    """Ask the driver for the pages of both moments."""
    for name in MOMENTS:
        if getattr(state[name], "is_paged", False):
            functions("a paged optimizer").prefetch_tensor(state[name])
