"""AdamW with float32 states by torch's fused kernel, without torch.optim: building one of its classes imports torch's
compiler, 1.6 seconds and 40 MiB that training has no use for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorikeet.base.apart import zeros_apart
from lorikeet.train.optimizers._contract import Shared, State


def begin(parameter: Tensor) -> State:
    """Both moments in the parameter's dtype; the kernel wants the count on the device too."""
    means = {name: zeros_apart(parameter) for name in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.zeros((), device=parameter.device), **means}


def update(parameters: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[State], shared: Shared) -> None:
    """One call of the kernel for each dtype and device."""
    steps = [state["step"] for state in states]
    if steps:
        torch._foreach_add_(steps, 1)
    for dtype, device in dict.fromkeys((parameter.dtype, parameter.device) for parameter in parameters):
        those = [i for i, one in enumerate(parameters) if (one.dtype, one.device) == (dtype, device)]
        torch._fused_adamw_(
            [parameters[i] for i in those],
            [gradients[i] for i in those],
            [states[i]["exp_avg"] for i in those],
            [states[i]["exp_avg_sq"] for i in those],
            [],
            [steps[i] for i in those],
            lr=shared.rate,
            beta1=shared.adam_beta1,
            beta2=shared.adam_beta2,
            weight_decay=shared.weight_decay,
            eps=shared.adam_epsilon,
            amsgrad=False,
            maximize=False,
        )
