"""GPTQ of a mixture's experts, one after the other: one of their Hessians is in memory, never all.

An expert is rounded on the tokens that its router sends to it: gate and up on what goes into the block, down on what
they make of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from lorikeet.models.experts import Mixture
from lorikeet.models.linear import FrozenLinear, LinearGroup
from lorikeet.ops.swiglu import Activation, swiglu
from lorikeet.quant._gptq_solver import Hessian

Settle = Callable[..., None]  # (group, linears, hessian, tokens=, expert=, fell_back=)


def enough(width: int) -> int:
    """Of how many tokens a Hessian [width, width] is made of them alone: of fewer it has no full rank."""
    return width


def round_experts(mixture: Mixture, fed: Sequence[Tensor], settle: Settle, *, sequential: bool) -> None:
    """Round each expert on its share of `fed`, the mixture's inputs [T, D] of each row, already normed.

    `settle` rounds some neighbours of a group, and puts the result into its weight. `sequential`: down is rounded on
    what the rounded gate and up give, not on what they gave before."""
    chosen = [mixture.route(x)[0] for x in fed]
    for expert in range(mixture.sizes.count):
        own = [x[(choice == expert).any(-1)] for x, choice in zip(fed, chosen)]
        gate_up, down = (group.of_expert(expert) for group in mixture.expert_groups)
        rows = gate_up[0].rows.start, gate_up[-1].rows.stop
        before = None if sequential else mixture.gate_up.weight.rows(*rows, fed[0].dtype).clone()
        _round(settle, expert, mixture.gate_up, gate_up, own, fed, lambda x: x)
        weight = mixture.gate_up.weight.rows(*rows, fed[0].dtype) if before is None else before
        _round(settle, expert, mixture.down, down, own, fed, partial(_inside, weight, mixture.activation))


def _inside(gate_up: Tensor, activation: Activation, x: Tensor) -> Tensor:
    """What an expert's down is fed for x [T, D]: [T, F]."""
    return swiglu(x @ gate_up.T, activation)


def _round(
    settle: Settle,
    expert: int,
    group: LinearGroup,
    linears: Sequence[FrozenLinear],
    own: Sequence[Tensor],
    fed: Sequence[Tensor],
    inputs: Callable[[Tensor], Tensor],
) -> None:
    """Round one expert's `linears`, whose inputs are `inputs` of a token's."""
    width = group.weight.in_features
    hessian, tokens = Hessian(width, own[0].device), sum(map(len, own))
    for x in own:
        hessian.add(inputs(x))
    few = tokens < enough(width)
    if few:
        for x in fed:
            hessian.add(inputs(x), weight=width / sum(map(len, fed)))
    settle(group, linears, hessian, tokens=tokens, expert=expert, fell_back=few)
