"""What LoRA and its kin share: the options, each linear's rank and factor, biases, and adapter_config.json.

The factor of a linear is s = lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023), or given
directly as `scaling`. rank_pattern and alpha_pattern give linears r and lora_alpha of their own, as in PEFT.
"""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from lorikeet.adapters import _expert_lora
from lorikeet.adapters import _first_values as first_values
from lorikeet.adapters._contract import halves
from lorikeet.adapters._saved_modules import SavesModules, modules_said
from lorikeet.adapters._targets import (
    PREFIX,
    by_leaf_or_name,
    from_peft_targets,
    leaves_or_names,
    refuse_settings,
)
from lorikeet.adapters._trained_linears import TrainedPart, master
from lorikeet.base.errors import RecipeError
from lorikeet.base.option_types import Factor
from lorikeet.models.causal_lm import CausalLM

# settings of PEFT's that make another model of the same A and B
UNSUPPORTED = [
    "use_dora",
    "ensure_weight_tying",
    "lora_bias",
    "trainable_token_indices",
    "fan_in_fan_out",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
]
SAME_FUNCTION = (True, False, None, "gaussian", "eva", "orthogonal")  # of init_lora_weights: A and B say everything
STARTS = "true gaussian orthogonal pissa pissa_niter_4 olora"


# beyond these are slips of the pen: such a rank has no matrix left to be lower than; the second is Factor's own bound
MOST_RANK, MOST_ALPHA = 1 << 16, 1e6


class LowRankAdapter(SavesModules):
    """Options of an adapter that adds s B A to linears."""

    r: int = Field(8, ge=1, le=MOST_RANK, description="Rank of the update.")
    lora_alpha: Factor | None = Field(None, description="Numerator of the scaling; by default 2 r.")
    scaling: Factor | None = Field(None, description="The update's factor, given directly instead of lora_alpha.")
    use_rslora: bool = Field(False, description="Divide lora_alpha by sqrt(r) instead of r.")
    rank_pattern: dict[str, int] = Field(
        {}, description="r of some linears: the end of their names, or a regex for it.", examples=[{"down_proj": 16}]
    )
    alpha_pattern: dict[str, float] = Field(
        {}, description="lora_alpha of some linears, named in the same way.", examples=[{"down_proj": 32}]
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Probability to drop an input of the update.")
    bias: Literal["none", "lora_only", "all"] = Field(
        "none", description="Also train biases: none, those of the targeted linears, or all of them."
    )
    init_lora_weights: bool | str = Field(
        True,
        description="How A and B start: true (A random, B zero), gaussian, orthogonal; or as a part of the weight: "
        "pissa, pissa_niter_4 (the same in a fraction of the time; any number of iterations) or olora.",
        examples=["pissa_niter_4"],
    )
    loraplus_lr_ratio: Factor = Field(
        1.0, description="B's learning rate as a multiple of A's, which is train.learning_rate (LoRA+)."
    )
    peft_type: ClassVar[str] = "LORA"
    only_at_start: ClassVar[tuple[str, ...]] = ("init_lora_weights",)

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns(cls, value: dict[str, float]) -> dict[str, float]:
        for pattern, number in value.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is not a valid regular expression: {error}") from None
            if number <= 0:
                raise ValueError(f"{pattern}: {number} is not above 0")
            most = MOST_RANK if isinstance(number, int) else MOST_ALPHA
            if number > most:
                raise ValueError(f"{pattern}: {number} is above {most:g}")
        return value

    @field_validator("init_lora_weights")
    @classmethod
    def _known_start(cls, value: bool | str) -> bool | str:
        if not first_values.known(value):
            raise ValueError(f"there is no start '{value}' (allowed: {STARTS})")
        return value

    @model_validator(mode="after")
    def _one_scaling(self) -> Self:
        if self.scaling is not None and (self.lora_alpha is not None or self.use_rslora or self.alpha_pattern):
            raise ValueError(
                "scaling is given directly, so lora_alpha, alpha_pattern and use_rslora would have no effect"
            )
        return self

    @model_validator(mode="after")
    def _can_be_read_again(self) -> Self:
        """A factor is saved as the lora_alpha that gives it, and a split weight with twice its rank."""
        most = max([self.r, *self.rank_pattern.values()])
        alpha = max([self.alpha, *self.alpha_pattern.values()]) if self.scaling is None else self.scaling * most
        alpha *= 2 if first_values.splits(self.init_lora_weights) else 1
        if alpha > MOST_ALPHA:
            raise ValueError(f"such an update would be saved with lora_alpha {alpha:g}, which is above {MOST_ALPHA:g}")
        return self

    @property
    def alpha(self) -> float:
        """lora_alpha of the linears that no pattern names."""
        if self.scaling is not None:
            return self.scaling * (math.sqrt(self.r) if self.use_rslora else self.r)
        return self.lora_alpha if self.lora_alpha is not None else 2.0 * self.r

    @property
    def factor(self) -> float:
        """s of the linears that no pattern names."""
        return self.scaling if self.scaling is not None else self.alpha / self._divisor(self.r)

    def _divisor(self, rank: int) -> float:
        return math.sqrt(rank) if self.use_rslora else rank

    def rank_of(self, name: str) -> int:
        """R of a linear."""
        return int(_by_pattern(self.rank_pattern, name, self.r))

    def factor_of(self, name: str) -> float:
        """s of a linear, what its update is multiplied with."""
        if self.scaling is not None:
            return self.scaling
        return _by_pattern(self.alpha_pattern, name, self.alpha) / self._divisor(self.rank_of(name))

    def _alpha_of(self, name: str, rank: int, rslora: bool) -> float:
        """The lora_alpha that gives a linear its factor at this rank, with or without rsLoRA's divisor."""
        if self.scaling is None and (rank, rslora) == (self.rank_of(name), self.use_rslora):
            return _by_pattern(self.alpha_pattern, name, self.alpha)  # not by way of a division
        return self.factor_of(name) * (math.sqrt(rank) if rslora else rank)

    def function(self, model: CausalLM) -> dict[str, Any]:
        """See `Adapter.function`."""
        names = sorted(self.targeted(model))
        return super().function(model) | {
            "r": {name: self.rank_of(name) for name in names},
            "lora_alpha": {name: round(self.factor_of(name) * self._divisor(self.rank_of(name)), 6) for name in names},
            "use_rslora": self.use_rslora,
            "bias": self.bias,
        }

    def check_patterns(self, names: set[str]) -> None:
        """Raise RecipeError for a pattern that means none of the targeted linears `names`."""
        for option in ("rank_pattern", "alpha_pattern"):
            for pattern in getattr(self, option):
                if not any(_matches(pattern, name) for name in names):
                    raise RecipeError(
                        f"adapter.{option}: '{pattern}' names no linear that trains",
                        given=pattern,
                        allowed=" ".join(sorted({name.rsplit(".", 1)[-1] for name in names})),
                    )

    def targeted(self, model: CausalLM) -> set[str]:
        """See `TargetedAdapter.targeted`."""
        if not self.target_modules:
            if self.bias != "none" or self.modules_to_save:
                return set()
            raise RecipeError(
                "adapter.target_modules: is empty, so nothing would train",
                given="[]",
                allowed="all-linear, names of linear layers, or a regex",
                try_="adapter.target_modules=all-linear",
            )
        return super().targeted(model)

    def free_biases(self, model: CausalLM, names: set[str]) -> None:
        """Let the biases that `bias` means train, `names` being the targeted linears. Raises RecipeError for none."""
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
            linear.bias = nn.Parameter(linear.bias.detach().to(master(linear.bias.dtype)), requires_grad=True)

    def kept_per_token(self, model: CausalLM) -> int:
        """See `Adapter.kept_per_token`: what the A's of a group make of it, in the width that kernels take."""
        ranks = [
            sum(self.rank_of(linear.name) for linear in group.linears if linear.adapter is not None)
            for group in model.groups()
            if group.attached is not None
        ]
        return sum(rank + -rank % 32 for rank in ranks)

    def smaller(self) -> list[dict[str, Any]]:
        """See `Adapter.smaller`."""
        return [{"r": rank} for rank in halves(self.r)]

    def learning_rate_factors(self, model: CausalLM) -> dict[str, float]:
        """See `Adapter.learning_rate_factors`. As PEFT's LoRA+: every B, and whatever has one dimension."""
        if self.loraplus_lr_ratio == 1.0:
            return {}
        parameters = self.parameters(model).items()
        faster = [name for name, parameter in parameters if "lora_B" in name or parameter.dim() == 1]
        return dict.fromkeys(faster, self.loraplus_lr_ratio)

    def from_peft_tensors(self, model: CausalLM, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Adapter.from_peft_tensors`."""
        return _expert_lora.unstacked(model, tensors, self.r)

    def low_rank_config(self, model: CausalLM, ranks: dict[str, int]) -> dict[str, Any]:
        """adapter_config.json for the linears of `ranks`, each with its rank as saved. A direct `scaling`, or a factor
        that a pattern gives, is written as the lora_alpha that gives it."""
        # PEFT joins gate and up of experts to one of twice the rank, and then errs by sqrt 2 with use_rslora; it
        # refuses experts with dropout, which matters only in training
        experts = bool(_expert_lora.stacks(model))
        rslora = self.use_rslora and not experts
        alphas = {name: self._alpha_of(name, r, rslora) for name, r in ranks.items()}
        rank, alpha = _most_common(ranks, self.r), _most_common(alphas, self.alpha)
        return {
            "peft_type": self.peft_type,
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": by_leaf_or_name(ranks, rank),
            "alpha_pattern": by_leaf_or_name(alphas, alpha),
            "lora_dropout": 0.0 if experts else self.lora_dropout,
            "use_rslora": rslora,
            "target_modules": leaves_or_names(set(ranks), model),
            "bias": self.bias,
            "modules_to_save": self.modules_to_save or None,
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
        }

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Self:
        """See `Adapter.from_peft`."""
        refuse_settings(config, UNSUPPORTED, "plain LoRA")
        start = config.get("init_lora_weights", True)
        if start not in SAME_FUNCTION and start not in first_values.SPLITTING:
            # a part of the base is in A and B, and it cannot be known which: pissa_niter draws its directions
            refuse_settings(config, ["init_lora_weights"], "plain LoRA")
        if config.get("target_parameters"):
            said = _expert_lora.settings_of_stacked(config) | modules_said(config)
            return cls(bias=config.get("bias", "none"), **said)
        return cls(
            r=config["r"],
            lora_alpha=config["lora_alpha"],
            lora_dropout=config.get("lora_dropout", 0.0),
            use_rslora=config.get("use_rslora", False),
            rank_pattern=config.get("rank_pattern") or {},
            alpha_pattern=config.get("alpha_pattern") or {},
            bias=config.get("bias", "none"),
            init_lora_weights=start if start in first_values.SPLITTING else True,
            **modules_said(config),
            **from_peft_targets(config),
        )


def _by_pattern(patterns: dict[str, Any], name: str, otherwise: float) -> float:
    return next((number for pattern, number in patterns.items() if _matches(pattern, name)), otherwise)


def _matches(pattern: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def _most_common(values: dict[str, Any], otherwise: Any) -> Any:
    """What most linears have; `otherwise` where it is among the most common, or there are none."""
    found = list(values.values())
    return max([otherwise, *found], key=found.count)


def bias_parameters(model: CausalLM) -> dict[str, nn.Parameter]:
    """The biases that train, under PEFT's names."""
    found: dict[str, nn.Parameter] = {}
    for name, linear in model.linears():
        if linear.bias is not None and linear.bias.requires_grad:
            plain = linear.adapter is None or isinstance(linear.adapter, TrainedPart)
            owner = name if plain else f"{name}.base_layer"
            found[f"{PREFIX}{owner}.bias"] = linear.bias
    return found
