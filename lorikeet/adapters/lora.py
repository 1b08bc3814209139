"""LoRA (Hu et al. 2021): W x + s B A x, with A [R, in] and B [out, R] trained in float32 and W frozen.

Initialisation as in PEFT: A uniform in +-1/sqrt(in) (Kaiming, a = sqrt 5), B zero. Members of one group share
dropout's mask. The arithmetic is in ops/lora_linear.py; which linears, their ranks and factors in _low_rank.py.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorikeet.adapters import _expert_lora
from lorikeet.adapters._expert_lora import ExpertPair
from lorikeet.adapters._low_rank import LowRankAdapter, bias_parameters, master
from lorikeet.adapters._targets import PREFIX
from lorikeet.base.rng import torch_rng
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.experts import ExpertGroup
from lorikeet.models.linear import FrozenLinear, LinearGroup
from lorikeet.ops.lora_linear import LowRank, Prologue, lora_linear


class Lora(LowRankAdapter):
    """Low-rank updates on chosen linears."""

    kind: Literal["lora"] = "lora"

    def attach(self, model: CausalLM, *, seed: int) -> None:
        """See `Adapter.attach`."""
        names = self.targeted(model)
        self.check_patterns(names)
        for group in model.groups():
            if isinstance(group, ExpertGroup):
                _expert_lora.attach(group, names, self, dtype=master(model.dtype), seed=seed)
                continue
            for linear in group.linears:
                if linear.name in names:
                    linear.adapter = LoraPair(linear, self, model.dtype, seed)
            if any(linear.adapter is not None for linear in group.linears):
                group.attached = LoraGroup(group, self.lora_dropout)
        self.free_biases(model, names)

    def parameters(self, model: CausalLM) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        found: dict[str, nn.Parameter] = {}
        for name, linear in model.linears():
            pair = linear.adapter
            if isinstance(pair, LoraPair):
                found[f"{PREFIX}{name}.lora_A.weight"] = pair.a
                found[f"{PREFIX}{name}.lora_B.weight"] = pair.b
        for name, stack in _expert_lora.stacks(model).items():
            found |= {f"{PREFIX}{name}.lora_A.weight": stack.a, f"{PREFIX}{name}.lora_B.weight": stack.b}
        return found | bias_parameters(model)

    def tensors(self, model: CausalLM) -> dict[str, Tensor]:
        """See `Adapter.tensors`."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.parameters(model).items():
            found |= {name: parameter} if parameter.dim() < 3 else _expert_lora.one_by_one(name, parameter)
        return found

    def merged(self, linear: FrozenLinear) -> Tensor:
        """See `Adapter.merged`."""
        pair = linear.adapter
        if not isinstance(pair, (LoraPair, ExpertPair)):
            return linear.dense(master(linear.stored_dtype))
        return linear.dense(pair.a.dtype) + self.factor_of(linear.name) * (pair.b.detach() @ pair.a.detach())

    def peft_config(self, model: CausalLM) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        names = [name for name, linear in model.linears() if linear.adapter is not None]
        return self.low_rank_config(model, {name: self.rank_of(name) for name in names})


class LoraPair(nn.Module):
    """A [R, in] and B [out, R] of one linear."""

    def __init__(self, linear: FrozenLinear, options: LowRankAdapter, dtype: torch.dtype, seed: int):
        super().__init__()
        dtype, bound, rank = master(dtype), 1 / math.sqrt(linear.in_features), options.rank_of(linear.name)
        a = torch.empty(rank, linear.in_features, dtype=dtype)
        a.uniform_(-bound, bound, generator=torch_rng(seed, "lora_A", linear.name))
        self.a = nn.Parameter(a.to(linear.device))
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=dtype, device=linear.device))
        self.factor = options.factor_of(linear.name)


class LoraGroup(nn.Module):
    """Computes a group of linears with their members' updates."""

    def __init__(self, group: LinearGroup, dropout: float):
        super().__init__()
        self._group, self.dropout = [group], dropout  # in a list: the group owns us, not we it
        found = [(linear.rows, linear.adapter) for linear in group.linears]
        self._pairs = [(rows, pair) for rows, pair in found if isinstance(pair, LoraPair)]
        self._low_rank = [LowRank(rows, pair.factor) for rows, pair in self._pairs]

    def forward(self, x: Tensor, prologue: Prologue | None = None) -> Tensor:
        """x, or what the prologue makes of it, [T, in] -> [T, sum of the members' out]."""
        group = self._group[0]
        factors = [factor for _, pair in self._pairs for factor in (pair.a, pair.b)]
        dropout = self.dropout if torch.is_grad_enabled() else 0.0
        return lora_linear(x, group.weight, group.bias(), self._low_rank, factors, dropout, prologue)
