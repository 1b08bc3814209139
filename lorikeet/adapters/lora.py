"""LoRA (Hu et al. 2021): W x + s B A x, with A [R, in] and B [out, R] trained in float32 and W frozen.

s = lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023), or given directly as `scaling`.
Initialisation as in PEFT: A uniform in +-1/sqrt(in) (Kaiming, a = sqrt 5), B zero. Members of one group share
dropout's mask. The arithmetic is in ops/lora_linear.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from lorikeet.adapters import _expert_lora
from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._expert_lora import PREFIX, ExpertPair
from lorikeet.base.errors import RecipeError
from lorikeet.base.rng import torch_rng
from lorikeet.base.targets import everything, matching
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.experts import ExpertGroup
from lorikeet.models.linear import FrozenLinear, LinearGroup
from lorikeet.ops.lora_linear import LowRank, Prologue, lora_linear

# settings of PEFT's that make another model of the same A and B
UNSUPPORTED = [
    "use_dora",
    "modules_to_save",
    "layers_to_transform",
    "lora_bias",
    "trainable_token_indices",
    "fan_in_fan_out",
    "exclude_modules",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
]


class Lora(Adapter):
    """Low-rank updates on chosen linears."""

    kind: Literal["lora"] = "lora"
    r: int = Field(8, ge=1, description="Rank of the update.")
    lora_alpha: float | None = Field(None, gt=0, description="Numerator of the scaling; by default 2 r.")
    scaling: float | None = Field(None, gt=0, description="The update's factor, given directly instead of lora_alpha.")
    use_rslora: bool = Field(False, description="Divide lora_alpha by sqrt(r) instead of r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Probability to drop an input of the update.")
    target_modules: Literal["all-linear"] | str | list[str] = Field(
        "all-linear",
        description="all-linear (every linear but the head and the routers of experts), a list of names (q_proj or "
        "layers.3.mlp.up_proj), or a regex on the whole name.",
    )
    bias: Literal["none", "lora_only", "all"] = Field(
        "none", description="Also train biases: none, those of the targeted linears, or all of them."
    )
    peft_type: ClassVar[str] = "LORA"

    @model_validator(mode="after")
    def _one_scaling(self) -> Self:
        if self.scaling is not None and (self.lora_alpha is not None or self.use_rslora):
            raise ValueError("scaling is given directly, so lora_alpha and use_rslora would have no effect")
        return self

    @property
    def factor(self) -> float:
        """s, what the update is multiplied with."""
        if self.scaling is not None:
            return self.scaling
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    @property
    def alpha(self) -> float:
        if self.scaling is not None:
            return self.scaling * self.r
        return self.lora_alpha if self.lora_alpha is not None else 2.0 * self.r

    def attach(self, model: CausalLM, *, seed: int) -> None:
        """See `Adapter.attach`."""
        names = self._targeted(model)
        for group in model.groups():
            if isinstance(group, ExpertGroup):
                _expert_lora.attach(
                    group, names, rank=self.r, factor=self.factor, dropout=self.lora_dropout,
                    dtype=_master(model.dtype), seed=seed,
                )  # fmt: skip
                continue
            for linear in group.linears:
                if linear.name in names:
                    linear.adapter = LoraPair(linear, self, model.dtype, seed)
            if any(linear.adapter is not None for linear in group.linears):
                group.attached = LoraGroup(group, self.lora_dropout)
        self._free_biases(model, names)

    def _targeted(self, model: CausalLM) -> set[str]:
        names = [name for name, _ in model.linears()]
        if everything(self.target_modules):
            routers = {linear.name for group in model.groups() if group.routes for linear in group.linears}
            return set(names) - routers
        stacked = {
            linear.name: group.stacked
            for group in model.groups()
            if isinstance(group, ExpertGroup)
            for linear in group.linears
        }
        return self.targets(names, stacked)

    def targets(self, names: list[str], stacked: Mapping[str, str] = {}) -> set[str]:
        """Which of the linears are meant; `stacked` has another name for some, that of all experts' weights in one.
        Raises RecipeError for a word that matches none."""
        if not self.target_modules and self.bias == "none":
            raise RecipeError(
                "adapter.target_modules: is empty, so nothing would train",
                given="[]",
                allowed="all-linear, names of linear layers, or a regex",
                try_="adapter.target_modules=all-linear",
            )
        return matching("adapter.target_modules", self.target_modules, names, stacked)

    def _free_biases(self, model: CausalLM, names: set[str]) -> None:
        if self.bias == "none":
            return
        wanted = [linear for name, linear in model.linears() if self.bias == "all" or name in names]
        biased = [linear for linear in wanted if linear.bias is not None]
        if not biased:
            raise RecipeError(
                f"adapter.bias: {self.bias} has no effect, the model's linears have no biases",
                given=self.bias,
                allowed="none",
                try_="adapter.bias=none",
            )
        for linear in biased:
            assert linear.bias is not None
            linear.bias = nn.Parameter(linear.bias.detach().to(_master(linear.bias.dtype)), requires_grad=True)

    def parameters(self, model: CausalLM) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        found: dict[str, nn.Parameter] = {}
        for name, linear in model.linears():
            pair = linear.adapter
            if isinstance(pair, LoraPair):
                found[f"{PREFIX}{name}.lora_A.weight"] = pair.a
                found[f"{PREFIX}{name}.lora_B.weight"] = pair.b
            if linear.bias is not None and linear.bias.requires_grad:
                owner = f"{name}.base_layer" if pair is not None else name
                found[f"{PREFIX}{owner}.bias"] = linear.bias
        for name, stack in _expert_lora.stacks(model).items():
            found |= {f"{PREFIX}{name}.lora_A.weight": stack.a, f"{PREFIX}{name}.lora_B.weight": stack.b}
        return found

    def tensors(self, model: CausalLM) -> dict[str, Tensor]:
        """See `Adapter.tensors`."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.parameters(model).items():
            found |= {name: parameter} if parameter.dim() < 3 else _expert_lora.one_by_one(name, parameter)
        return found

    def from_peft_tensors(self, model: CausalLM, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Adapter.from_peft_tensors`."""
        return _expert_lora.unstacked(model, tensors, self.r)

    def merged(self, linear: FrozenLinear) -> Tensor:
        """See `Adapter.merged`."""
        pair = linear.adapter
        if not isinstance(pair, (LoraPair, ExpertPair)):
            return linear.dense(_master(linear.stored_dtype))
        return linear.dense(pair.a.dtype) + self.factor * (pair.b.detach() @ pair.a.detach())

    def peft_config(self, model: CausalLM) -> dict[str, Any]:
        """See `Adapter.peft_config`. A direct `scaling` is written as the lora_alpha that gives it."""
        names = [name for name, linear in model.linears() if linear.adapter is not None]
        everything = len(names) == sum(1 for _ in model.linears())
        leaves = sorted({name.rsplit(".", 1)[-1] for name in names})
        whole = set(names) == {name for name, _ in model.linears() if name.rsplit(".", 1)[-1] in leaves}
        # PEFT joins gate and up of experts to one of twice the rank, and then errs by sqrt 2 with use_rslora; it
        # refuses experts with dropout, which matters only in training
        experts = any(isinstance(linear.adapter, ExpertPair) for _, linear in model.linears())
        return {
            "peft_type": self.peft_type,
            "task_type": "CAUSAL_LM",
            "r": self.r,
            "lora_alpha": self.factor * self.r if experts else self.alpha,
            "lora_dropout": 0.0 if experts else self.lora_dropout,
            "use_rslora": self.use_rslora and not experts,
            "target_modules": leaves if everything or whole else sorted(names),
            "bias": self.bias,
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
        }

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Lora:
        """See `Adapter.from_peft`."""
        unknown = [name for name in UNSUPPORTED if config.get(name)]
        if config.get("init_lora_weights", True) not in (True, False, None, "gaussian", "eva", "orthogonal"):
            unknown.append("init_lora_weights")  # PiSSA and its like move a part of the base into A and B
        for name in unknown:
            raise RecipeError(
                f"this adapter uses '{name}', which is not supported", given=config[name], allowed="plain LoRA"
            )
        if any(config.get(name) for name in ("target_parameters", "rank_pattern", "alpha_pattern")):
            return cls(bias=config.get("bias", "none"), **_expert_lora.settings_of_stacked(config))
        return cls(
            r=config["r"],
            lora_alpha=config["lora_alpha"],
            lora_dropout=config.get("lora_dropout", 0.0),
            use_rslora=config.get("use_rslora", False),
            target_modules=config["target_modules"],
            bias=config.get("bias", "none"),
        )


def _master(dtype: torch.dtype) -> torch.dtype:
    """Trainable tensors are float32, or wider where the model is."""
    return torch.promote_types(dtype, torch.float32)


class LoraPair(nn.Module):
    """A [R, in] and B [out, R] of one linear."""

    def __init__(self, linear: FrozenLinear, options: Lora, dtype: torch.dtype, seed: int):
        super().__init__()
        dtype, bound = _master(dtype), 1 / math.sqrt(linear.in_features)
        a = torch.empty(options.r, linear.in_features, dtype=dtype)
        a.uniform_(-bound, bound, generator=torch_rng(seed, "lora_A", linear.name))
        self.a = nn.Parameter(a.to(linear.device))
        self.b = nn.Parameter(torch.zeros(linear.out_features, options.r, dtype=dtype, device=linear.device))
        self.factor = options.factor


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
