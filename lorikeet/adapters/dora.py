"""DoRA (Liu et al. 2024): LoRA whose updated rows get a trained length m: (m / |W + s B A|) (W + s B A) x.

m starts as the rows' own lengths, so the start is the base, and the lengths are held constant for the gradient, as in
PEFT. The arithmetic is in ops/dora_linear.py; nowhere is W + s B A made dense. One difference to PEFT: with dropout,
PEFT also drops inputs of the frozen part (m / n - 1) W x; here, as in LoRA, only those of the update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import field_validator
from torch import Tensor, nn
from typing_extensions import Self

from lorikeet.adapters._first_values import splits
from lorikeet.adapters._low_rank import LowRankAdapter, bias_parameters
from lorikeet.adapters._targets import PREFIX, refuse_experts
from lorikeet.adapters.lora import LoraPair
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.linear import FrozenLinear, LinearGroup
from lorikeet.ops.dora_linear import dora_linear, row_norms, squared_rows
from lorikeet.ops.lora_linear import LowRank, Prologue


class Dora(LowRankAdapter):
    """Low-rank updates with trained row lengths on chosen linears."""

    kind: Literal["dora"] = "dora"

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        """See `Adapter.reads`."""
        return super().reads(config) and bool(config.get("use_dora"))

    @field_validator("init_lora_weights")
    @classmethod
    def _whole_weights(cls, value: bool | str) -> bool | str:
        if splits(value):
            raise ValueError(f"dora starts from the whole weight, not from a part of it as with '{value}'")
        return value

    def attach(self, model: CausalLM, *, seed: int) -> None:
        """See `Adapter.attach`."""
        names = self.targeted(model)
        self.check_patterns(names)
        refuse_experts(model, names, self.kind)
        for group in model.groups():
            for linear in group.linears:
                if linear.name in names:
                    linear.adapter = DoraPair(linear, group, self, model.dtype, seed)
            if any(linear.adapter is not None for linear in group.linears):
                group.attached = DoraGroup(group, self.lora_dropout, model.dtype)
        self.free_biases(model, names)
        self.release_modules(model)

    def parameters(self, model: CausalLM) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        found: dict[str, nn.Parameter] = {}
        for name, linear in model.linears():
            if isinstance(pair := linear.adapter, DoraPair):
                found[f"{PREFIX}{name}.lora_A.weight"] = pair.a
                found[f"{PREFIX}{name}.lora_B.weight"] = pair.b
                found[f"{PREFIX}{name}.lora_magnitude_vector"] = pair.m
        return found | bias_parameters(model) | self.module_parameters(model)

    def merged(self, linear: FrozenLinear) -> Tensor:
        """See `Adapter.merged`."""
        pair = linear.adapter
        if not isinstance(pair, DoraPair):
            return super().merged(linear)
        updated = linear.dense(pair.a.dtype) + pair.factor * (pair.b.detach() @ pair.a.detach())
        return updated * (pair.m.detach() / updated.norm(dim=1))[:, None]

    def peft_config(self, model: CausalLM) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        names = [name for name, linear in model.linears() if isinstance(linear.adapter, DoraPair)]
        return self.low_rank_config(model, {name: self.rank_of(name) for name in names}) | {"use_dora": True}

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Self:
        """See `Adapter.from_peft`."""
        return super().from_peft({**config, "use_dora": False})


class DoraPair(LoraPair):
    """A [R, in], B [out, R] and m [out] of one linear, and the squares [out] of its rows."""

    squares: Tensor

    def __init__(self, linear: FrozenLinear, group: LinearGroup, options: Dora, dtype: torch.dtype, seed: int):
        super().__init__(linear, options, dtype, seed)
        squares = squared_rows(group.weight, linear.rows, self.a.dtype)
        self.register_buffer("squares", squares, persistent=False)
        self.m = nn.Parameter(squares.sqrt())


class DoraGroup(nn.Module):
    """Computes a group of linears with their members' updates and lengths."""

    def __init__(self, group: LinearGroup, dropout: float, dtype: torch.dtype):
        super().__init__()
        self._group, self.dropout, self.dtype = [group], dropout, dtype  # in a list: the group owns us, not we it
        found = [(linear.rows, linear.adapter) for linear in group.linears]
        self._pairs = [(rows, pair) for rows, pair in found if isinstance(pair, DoraPair)]
        self._low_rank = [LowRank(rows, pair.factor) for rows, pair in self._pairs]
        self._kept: tuple[list[int], list[Tensor]] | None = None

    def forward(self, x: Tensor, prologue: Prologue | None = None) -> Tensor:
        """x, or what the prologue makes of it, [T, in] -> [T, sum of the members' out]."""
        group, pairs = self._group[0], [pair for _, pair in self._pairs]
        factors = [factor for pair in pairs for factor in (pair.a, pair.b)]
        dropout = self.dropout if torch.is_grad_enabled() else 0.0
        return dora_linear(
            x, group.weight, group.bias(), self._low_rank, factors, [pair.m for pair in pairs],
            self._norms(factors), dropout, prologue,
        )  # fmt: skip

    def _norms(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """The rows' lengths. Answering asks for them once: each token would read all weights a second time for them.

        What was kept goes as soon as a pass has gradients, since an optimizer may move parameters without a trace."""
        versions = [factor._version for factor in factors]
        if not torch.is_grad_enabled() and self._kept is not None and self._kept[0] == versions:
            return self._kept[1]
        squares = [pair.squares for _, pair in self._pairs]
        norms = row_norms(self._group[0].weight, self._low_rank, factors, squares, self.dtype)
        self._kept = None if torch.is_grad_enabled() else (versions, norms)
        return norms
