"""IA3 (Liu et al. 2022): one trained vector for each chosen linear, on what goes out of it or, in the feed-forward, on
what goes in. All ones at the start, so the start is the base; a few numbers per layer. Names and layout are PEFT's.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import Self

from lorikeet.adapters._saved_modules import SavesModules, modules_said
from lorikeet.adapters._targets import (
    PREFIX,
    from_peft_targets,
    leaves_or_names,
    refuse_experts,
    refuse_settings,
)
from lorikeet.adapters._trained_linears import master
from lorikeet.base.errors import RecipeError
from lorikeet.base.targets import matching
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.linear import FrozenLinear, LinearGroup
from lorikeet.ops.lora_linear import Prologue, lora_linear
from lorikeet.ops.scaled_linear import scale_outputs, scaled_input_linear

UNSUPPORTED = ["fan_in_fan_out", "trainable_token_indices"]  # settings of PEFT's


class Ia3(SavesModules):
    """Trained vectors beside chosen linears."""

    kind: Literal["ia3"] = "ia3"
    target_modules: Literal["all-linear"] | str | list[str] = Field(
        ["k_proj", "v_proj", "down_proj"], description="Names of linears, a regex on the whole name, or all-linear."
    )
    feedforward_modules: str | list[str] = Field(
        ["down_proj"], description="Those whose inputs are scaled, and not their outputs; named in the same way."
    )
    peft_type: ClassVar[str] = "IA3"
    usual_rate: ClassVar[float] = 8e-3

    def attach(self, model: CausalLM, *, seed: int) -> None:
        """See `Adapter.attach`. Nothing is drawn."""
        names = self.targeted(model)
        if not names:
            raise RecipeError(
                "adapter.target_modules: is empty, so nothing would train",
                given="[]",
                allowed="names of linear layers, a regex, or all-linear",
                try_="adapter.target_modules='[k_proj, v_proj, down_proj]'",
            )
        refuse_experts(model, names, self.kind)
        inputs = self._feedforward(model, names)
        for group in model.groups():
            for linear in group.linears:
                if linear.name in names:
                    linear.adapter = Ia3Vector(linear, model.dtype, of_input=linear.name in inputs)
            if any(linear.adapter is not None for linear in group.linears):
                group.attached = Ia3Group(group)
        self.release_modules(model)

    def _feedforward(self, model: CausalLM, names: set[str]) -> set[str]:
        """Those of the targeted linears whose inputs are scaled. Raises RecipeError for one that is not targeted."""
        if not self.feedforward_modules:
            return set()
        found = matching(
            "adapter.feedforward_modules", self.feedforward_modules, [name for name, _ in model.linears()],
            otherwise="[]",
        )  # fmt: skip
        if not found & names:
            raise RecipeError(
                "adapter.feedforward_modules: none of them is among the targeted linears",
                given=self.feedforward_modules,
                allowed=" ".join(sorted({name.rsplit(".", 1)[-1] for name in names})),
                try_="adapter.feedforward_modules='[]'",
            )
        return found & names

    def function(self, model: CausalLM) -> dict[str, Any]:
        """See `Adapter.function`."""
        inputs = self._feedforward(model, self.targeted(model))
        return super().function(model) | {"feedforward_modules": leaves_or_names(inputs, model)}

    def parameters(self, model: CausalLM) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        vectors: dict[str, nn.Module | None] = {name: linear.adapter for name, linear in model.linears()}
        found = {f"{PREFIX}{name}.ia3_l": one.l for name, one in vectors.items() if isinstance(one, Ia3Vector)}
        return found | self.module_parameters(model)

    def merged(self, linear: FrozenLinear) -> Tensor:
        """See `Adapter.merged`."""
        dense = super().merged(linear)
        return dense * linear.adapter.l.detach() if isinstance(linear.adapter, Ia3Vector) else dense

    def merged_bias(self, linear: FrozenLinear) -> Tensor | None:
        """See `Adapter.merged_bias`."""
        vector = linear.adapter
        if linear.bias is None or not isinstance(vector, Ia3Vector) or vector.of_input:
            return linear.bias
        return linear.bias * vector.l.detach()[:, 0]

    def peft_config(self, model: CausalLM) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        vectors = {name: linear.adapter for name, linear in model.linears() if isinstance(linear.adapter, Ia3Vector)}
        inputs = {name for name, vector in vectors.items() if isinstance(vector, Ia3Vector) and vector.of_input}
        targets, feedforward = leaves_or_names(set(vectors), model), leaves_or_names(inputs, model)
        if not set(feedforward) <= set(targets):  # PEFT wants them to be the same words
            targets, feedforward = sorted(vectors), sorted(inputs)
        return {
            "peft_type": self.peft_type,
            "task_type": "CAUSAL_LM",
            "target_modules": targets,
            "feedforward_modules": feedforward,
            "modules_to_save": self.modules_to_save or None,
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_ia3_weights": True,
        }

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Self:
        """See `Adapter.from_peft`."""
        refuse_settings(config, UNSUPPORTED, "plain IA3")
        inputs = config.get("feedforward_modules") or []
        return cls(feedforward_modules=inputs, **modules_said(config), **from_peft_targets(config))


class Ia3Vector(nn.Module):
    """l of one linear: [out, 1], or [1, in] where it scales the input."""

    def __init__(self, linear: FrozenLinear, dtype: torch.dtype, *, of_input: bool):
        super().__init__()
        shape = (1, linear.in_features) if of_input else (linear.out_features, 1)
        self.l = nn.Parameter(torch.ones(shape, dtype=master(dtype), device=linear.device))
        self.of_input = of_input

    def gain(self) -> Tensor:
        """l - 1, [out] or [in]."""
        return self.l.flatten() - 1


class Ia3Group(nn.Module):
    """Computes a group of linears with their members' vectors."""

    def __init__(self, group: LinearGroup):
        super().__init__()
        self._group = [group]  # in a list: the group owns us, not we it

    def forward(self, x: Tensor, prologue: Prologue | None = None) -> Tensor:
        """x, or what the prologue makes of it, [T, in] -> [T, sum of the members' out]."""
        group = self._group[0]
        found = [(linear, linear.adapter) for linear in group.linears]
        vectors = [(linear, vector) for linear, vector in found if isinstance(vector, Ia3Vector)]
        into = [(linear.rows, vector.gain()) for linear, vector in vectors if vector.of_input]
        if into:
            rows, gains = zip(*into)
            y = scaled_input_linear(x, group.weight, group.bias(), rows, gains, prologue)
        else:
            y = lora_linear(x, group.weight, group.bias(), prologue=prologue)
        if len(into) == len(vectors):
            return y
        parts = [
            vector.gain() if isinstance(vector, Ia3Vector) and not vector.of_input else self._none(linear)
            for linear, vector in found
        ]
        return scale_outputs(y, torch.cat(parts))

    def _none(self, linear: FrozenLinear) -> Tensor:
        vectors = [one.adapter for one in self._group[0].linears if isinstance(one.adapter, Ia3Vector)]
        return vectors[0].l.new_zeros(linear.out_features)
