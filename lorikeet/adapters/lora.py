"""LoRA (Hu et al. 2021): W x + s B A x, with A [R, in] and B [out, R] trained in float32 and W frozen.

Initialisation as in PEFT: A uniform in +-1/sqrt(in) (Kaiming, a = sqrt 5), B zero; others, PiSSA among them, are in
_first_values.py. Members of one group share dropout's mask. The arithmetic is in ops/lora_linear.py; which linears,
their ranks and factors in _low_rank.py.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorikeet.adapters import _expert_lora
from lorikeet.adapters._expert_lora import ExpertPair
from lorikeet.adapters._first_values import first_values, splits
from lorikeet.adapters._low_rank import LowRankAdapter, bias_parameters
from lorikeet.adapters._targets import PREFIX, refuse_experts
from lorikeet.adapters._trained_linears import master
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
                if self.init_lora_weights is not True:
                    refuse_experts(model, names, f"init_lora_weights={self.init_lora_weights}")
                _expert_lora.attach(group, names, self, dtype=master(model.dtype), seed=seed)
                continue
            for linear in group.linears:
                if linear.name in names:
                    linear.adapter = LoraPair(linear, self, model.dtype, seed)
            if any(linear.adapter is not None for linear in group.linears):
                group.attached = LoraGroup(group, self.lora_dropout)
        self.free_biases(model, names)
        self.release_modules(model)

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
        return found | bias_parameters(model) | self.module_parameters(model)

    def tensors(self, model: CausalLM) -> dict[str, Tensor]:
        """See `Adapter.tensors`. What started as a part of W is written as the difference to it."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.parameters(model).items():
            found |= {name: parameter} if parameter.dim() < 3 else _expert_lora.one_by_one(name, parameter)
        for name, pair in self._split(model):
            found[f"{PREFIX}{name}.lora_A.weight"], found[f"{PREFIX}{name}.lora_B.weight"] = pair.factors()
        return found

    def _split(self, model: CausalLM) -> list[tuple[str, LoraPair]]:
        """The pairs that started as a part of W."""
        pairs = [(name, linear.adapter) for name, linear in model.linears()]
        return [(name, pair) for name, pair in pairs if isinstance(pair, LoraPair) and pair.start_a is not None]

    def resumed(self, model: CausalLM) -> dict[str, Tensor]:
        """See `Adapter.resumed`: both sides of each difference."""
        return {f"{PREFIX}{name}.{part}": value for name, pair in self._split(model) for part, value in pair.sides()}

    def from_peft_tensors(self, model: CausalLM, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Adapter.from_peft_tensors`. PEFT's A and B of PiSSA, unconverted, stand for W - s B0 A0 + s B A."""
        found = dict(super().from_peft_tensors(model, tensors))
        for name, pair in self._split(model):
            at_a, at_b = f"{PREFIX}{name}.lora_A.weight", f"{PREFIX}{name}.lora_B.weight"
            if at_a in found and at_b in found and len(found[at_a]) == len(pair.a):
                sides = {**dict(pair.sides()), "lora_A.trained": found[at_a], "lora_B.trained": found[at_b]}
                found |= {f"{PREFIX}{name}.{part}": value for part, value in sides.items()}
                found[at_a] = torch.cat([found[at_a].to(pair.a), sides["lora_A.start"]])
                found[at_b] = torch.cat([found[at_b].to(pair.b), sides["lora_B.start"]], 1)
        return found

    def merged(self, linear: FrozenLinear) -> Tensor:
        """See `Adapter.merged`."""
        pair = linear.adapter
        if not isinstance(pair, (LoraPair, ExpertPair)):
            return super().merged(linear)
        a, b = pair.factors() if isinstance(pair, LoraPair) else (pair.a, pair.b)
        return linear.dense(a.dtype) + self.factor_of(linear.name) * (b.detach() @ a.detach())

    def peft_config(self, model: CausalLM) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        names = [name for name, linear in model.linears() if isinstance(linear.adapter, (LoraPair, ExpertPair))]
        double = {name for name, _ in self._split(model)}
        ranks = {name: self.rank_of(name) * (2 if name in double else 1) for name in names}
        return self.low_rank_config(model, ranks)


class LoraPair(nn.Module):
    """A [R, in] and B [out, R] of one linear; and A0 and -B0 where they started as a part of its weight."""

    start_a: Tensor | None
    minus_start_b: Tensor | None

    def __init__(self, linear: FrozenLinear, options: LowRankAdapter, dtype: torch.dtype, seed: int):
        super().__init__()
        how, rank, self.factor = options.init_lora_weights, options.rank_of(linear.name), options.factor_of(linear.name)
        a, b = first_values(linear, how, rank, self.factor, master(dtype), seed)
        self.register_buffer("start_a", a.clone() if splits(how) else None, persistent=False)
        self.register_buffer("minus_start_b", -b if splits(how) else None, persistent=False)
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def factors(self) -> tuple[Tensor, Tensor]:
        """What computes: A and B, or [A, A0] and [B, -B0]."""
        if self.start_a is None or self.minus_start_b is None:
            return self.a, self.b
        return torch.cat([self.a, self.start_a]), torch.cat([self.b, self.minus_start_b], 1)

    def sides(self) -> list[tuple[str, Tensor]]:
        """Of a difference: what is trained, and what it started as."""
        assert self.start_a is not None and self.minus_start_b is not None
        trained = [("lora_A.trained", self.a), ("lora_B.trained", self.b)]
        return [*trained, ("lora_A.start", self.start_a), ("lora_B.start", self.minus_start_b)]


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
        factors = [factor for _, pair in self._pairs for factor in pair.factors()]
        dropout = self.dropout if torch.is_grad_enabled() else 0.0
        return lora_linear(x, group.weight, group.bias(), self._low_rank, factors, dropout, prologue)
