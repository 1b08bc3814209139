"""Optimizer states of one byte a number: block-wise dynamic quantisation (Dettmers et al. 2022).

256 numbers share their largest magnitude, and each keeps the index of the nearest of 256 values: seven decades, of
which a larger one is divided more finely. The values and the layout are bitsandbytes'.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from lorikeet.base.apart import zeros_apart
from lorikeet.train.optimizers._contract import Shared, State

BLOCK = 256
_DECADES = 7
_SMALLEST = torch.finfo(torch.float32).tiny


@cache
def _values(signed: bool) -> list[float]:
    """Ascending. A decade's values are the centres of its even parts: 2^i of them, or with a sign 2^i for each."""
    found = [0.0, 1.0]
    for i in range(_DECADES):
        parts = 2**i if signed else 2 ** (i + 1)
        centres = [10.0 ** (i - _DECADES + 1) * (0.1 + 0.9 * (j + 0.5) / parts) for j in range(parts)]
        found += centres + [-centre for centre in centres if signed]
    return sorted(found)


def values(signed: bool, device: torch.device) -> Tensor:
    """The 256 values, float32, ascending. Made anew: planning's tensors without numbers must not be kept."""
    return torch.tensor(_values(signed), dtype=torch.float32, device=device)


def quantise(numbers: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """float32 numbers -> (codes uint8 of their shape, magnitudes float32 [blocks]). Halfway goes to the lower code.

    Without a sign (squares, that something is divided by) only zero becomes zero. A square below 1.6e-7 of its block's
    largest would else, while its mean, kept more finely, would not: one step would move a weight by thousands."""
    table = values(signed, numbers.device)
    blocks = _blocks(numbers)
    largest = blocks.abs().amax(dim=1)
    magnitudes = torch.where(largest < _SMALLEST, torch.zeros_like(largest), largest)
    inverse = torch.where(magnitudes == 0, magnitudes, 1 / magnitudes)
    middles = (table[:-1] + table[1:]) / 2
    codes = torch.bucketize(blocks * inverse[:, None], middles, out_int32=True)
    if not signed:
        codes = torch.where((codes == 0) & (blocks > 0), 1, codes)
    codes = codes.to(torch.uint8)
    return codes.flatten()[: numbers.numel()].view(numbers.shape), magnitudes


def dequantise(codes: Tensor, magnitudes: Tensor, signed: bool) -> Tensor:
    """The inverse, up to rounding: float32 of the codes' shape."""
    table = values(signed, codes.device)
    numbers = table[_blocks(codes).int()] * magnitudes[:, None]
    return numbers.flatten()[: codes.numel()].view(codes.shape)


def _blocks(tensor: Tensor) -> Tensor:
    """[blocks, BLOCK], the last one filled with zeros."""
    flat = tensor.flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)


def begin(parameter: Tensor) -> State:
    """Both moments of AdamW. The count stays on the CPU, where it is read."""
    blocks = -(-parameter.numel() // BLOCK)
    state: State = {"step": torch.zeros((), device="meta" if parameter.is_meta else "cpu")}
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = zeros_apart(parameter, torch.uint8)
        state[f"{name}_absmax"] = torch.zeros(blocks, device=parameter.device)
    return state


def reference_adamw(parameter: Tensor, gradient: Tensor, state: State, shared: Shared) -> None:
    """The definition of a step: AdamW on the numbers that the codes stand for. state["step"] counts this one."""
    gradient, step = gradient.float(), state["step"].double()
    mean = dequantise(state["exp_avg"], state["exp_avg_absmax"], signed=True)
    square = dequantise(state["exp_avg_sq"], state["exp_avg_sq_absmax"], signed=False)
    mean.mul_(shared.adam_beta1).add_(gradient, alpha=1 - shared.adam_beta1)
    square.mul_(shared.adam_beta2).addcmul_(gradient, gradient, value=1 - shared.adam_beta2)
    first, second = 1 - shared.adam_beta1**step, (1 - shared.adam_beta2**step).sqrt()
    update = mean / (square.sqrt() / second + shared.adam_epsilon)
    parameter.mul_(1 - shared.rate * shared.weight_decay).sub_(update * (shared.rate / first))
    for name, numbers, signed in (("exp_avg", mean, True), ("exp_avg_sq", square, False)):
        codes, magnitudes = quantise(numbers, signed)
        state[name].copy_(codes)
        state[f"{name}_absmax"].copy_(magnitudes)
