"""GPTQ of a mixture's experts, one after the other: the Hessian of one is in memory, never of all.

An expert is rounded for the tokens that its router sends to it: gate and up for what goes into the block, down for what
they make of it. These may be few, or none, so all tokens of the calibration help, whoever they were sent to: with n
tokens of its own and an input of width w,

    H = (n H_own + w H_all) / (n + w)

What a network's tokens have in common (a few large directions) is in H_all; an expert alone would learn it from its n
again. docs/gptq.md has the measurement: better than either of them at any n, and where n is large the same as H_own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from lorikeet.models.experts import Mixture
from lorikeet.ops.swiglu import Activation, swiglu
from lorikeet.quant._gptq_solver import Hessian

HELP = 1.0  # what all tokens together weigh, in tokens per input
_SAMPLE = 16  # tokens per input that down's H_all is made of: each expert computes all of them once more

Settle = Callable[..., None]  # (group, linears, hessian, tokens=, expert=, fell_back=)


def round_experts(mixture: Mixture, fed: Sequence[Tensor], settle: Settle, *, sequential: bool) -> None:
    """Round each expert for its share of `fed`, the mixture's inputs [T, D] of each row, already normed.

    `settle` rounds some neighbours of a group, and puts the result into its weight; an expert of whose Hessian the
    smaller part is its own tokens' is said to have fallen back. `sequential`: down is rounded for what the rounded gate
    and up give, not for what they gave before."""
    chosen = [mixture.route(x)[0] for x in fed]
    into, inside = (group.weight.in_features for group in mixture.expert_groups)
    every, sample = _hessian(fed), list(_spread(fed, _SAMPLE * inside))
    for expert in range(mixture.sizes.count):
        own = [x[(choice == expert).any(-1)] for x, choice in zip(fed, chosen)]
        gate_up, down = (group.of_expert(expert) for group in mixture.expert_groups)
        rows = gate_up[0].rows.start, gate_up[-1].rows.stop
        before = None if sequential else mixture.gate_up.weight.rows(*rows, fed[0].dtype).clone()
        hessian = _hessian(own)
        hessian.include(every, HELP * into)
        settle(mixture.gate_up, gate_up, hessian, **_told(expert, own, into))
        del hessian  # before the next is made
        weight = mixture.gate_up.weight.rows(*rows, fed[0].dtype) if before is None else before
        hessian = _hessian([_inside(weight, mixture.activation, x) for x in own])
        for x in sample:
            hessian.add(_inside(weight, mixture.activation, x), HELP * inside / sum(map(len, sample)))
        settle(mixture.down, down, hessian, **_told(expert, own, inside))
        del hessian


def _hessian(parts: Sequence[Tensor]) -> Hessian:
    """Of inputs [T, in], the same for all parts."""
    found = Hessian(parts[0].shape[1], parts[0].device)
    for x in parts:
        found.add(x)
    return found


def _inside(gate_up: Tensor, activation: Activation, x: Tensor) -> Tensor:
    """What an expert's down is fed for x [T, D]: [T, F]."""
    return swiglu(x @ gate_up.T, activation)


def _told(expert: int, own: Sequence[Tensor], width: int) -> dict[str, int | bool]:
    tokens = sum(map(len, own))
    return {"tokens": tokens, "expert": expert, "fell_back": tokens < HELP * width}


def _spread(fed: Sequence[Tensor], count: int) -> Iterator[Tensor]:
    """Of the tokens in `fed` every n-th, at most `count`."""
    step, before = -(-sum(map(len, fed)) // count), 0
    for x in fed:
        yield x[-before % step :: step]
        before += len(x)
