"""The face of optimizer.cpp: an optimizer's step where its states are codes of one byte."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lorikeet.kernels import Kernel

_adamw_8bit = Kernel("optimizer", "adamw_8bit")

Codes = Sequence[Tensor]  # uint8 codes [n], float32 magnitudes [blocks of 256], contiguous


def adamw_8bit(
    parameter: Tensor,
    gradient: Tensor,
    mean: Codes,
    square: Codes,
    step: Tensor,
    *,
    rate: float,
    betas: tuple[float, float],
    epsilon: float,
    decay: float,
) -> None:
    """Move a float32 `parameter` and both moments in place; contiguous. `step`: this one's number, float32 []. The
    values that codes stand for are part of the C++ code."""
    _adamw_8bit(
        parameter.numel(), parameter, gradient, *mean, *square, step,
        float(rate), 1.0 - betas[0], 1.0 - betas[1], float(epsilon), float(decay),
    )  # fmt: skip
