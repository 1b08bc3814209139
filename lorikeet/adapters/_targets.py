"""Options of every adapter that changes linears: which of them, by name and by layer. Names and meaning are PEFT's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from lorikeet.adapters._contract import Adapter
from lorikeet.base.errors import RecipeError
from lorikeet.base.targets import everything, matching
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.experts import ExpertGroup

PREFIX = "base_model.model."  # before each name in PEFT's files


class TargetedAdapter(Adapter):
    """An adapter on chosen linears."""

    kind: str
    target_modules: Literal["all-linear"] | str | list[str] = Field(
        "all-linear",
        description="all-linear (every linear but the head and the routers of experts), a list of names (q_proj or "
        "layers.3.mlp.up_proj), or a regex on the whole name.",
    )
    exclude_modules: str | list[str] | None = Field(
        None, description="Linears to leave out all the same, named as in target_modules.", examples=[["down_proj"]]
    )
    layers_to_transform: int | list[int] | None = Field(
        None, description="Only these layers, counted from 0.", examples=[[0, 1]]
    )
    layers_pattern: str | list[str] | None = Field(
        None,
        description="What stands before a layer's number in names, where there are several lists of layers.",
        examples=["layers"],
    )

    @model_validator(mode="after")
    def _layers_have_an_effect(self) -> Self:
        if self.layers_to_transform is None and self.layers_pattern:
            raise ValueError("layers_pattern has no effect without layers_to_transform")
        if self.layers_to_transform == []:
            raise ValueError("layers_to_transform is an empty list, so nothing would train")
        if self.layers_to_transform is not None and self._by_regex:
            raise ValueError("layers_to_transform has no effect beside a regex, which can name the layers itself")
        return self

    @property
    def _by_regex(self) -> bool:
        return isinstance(self.target_modules, str) and not everything(self.target_modules)

    def targeted(self, model: CausalLM) -> set[str]:
        """The names of the linears that are meant. Raises RecipeError for a word that matches none."""
        names = [name for name, _ in model.linears()]
        experts = [group for group in model.groups() if isinstance(group, ExpertGroup)]
        stacked = {linear.name: group.stacked for group in experts for linear in group.linears}
        if everything(self.target_modules):
            routers = {linear.name for group in model.groups() if group.routes for linear in group.linears}
            found = set(names) - routers
        else:
            found = matching("adapter.target_modules", self.target_modules, names, stacked)
        if self.layers_to_transform is not None:
            found = self._in_layers(found)
        if self.exclude_modules and found:
            excluded = matching("adapter.exclude_modules", self.exclude_modules, names, stacked, otherwise="null")
            if found and not found - excluded:
                raise RecipeError(
                    "adapter.exclude_modules: leaves nothing to train",
                    given=self.exclude_modules,
                    allowed=" ".join(sorted({name.rsplit(".", 1)[-1] for name in found})) + ", but not all of them",
                )
            found -= excluded
        return found

    def function(self, model: CausalLM) -> dict[str, Any]:
        """See `Adapter.function`."""
        return {"target_modules": leaves_or_names(self.targeted(model), model)}

    def _in_layers(self, names: set[str]) -> set[str]:
        """Those of `names` in the chosen layers. Raises RecipeError for a layer that is not there."""
        by_layer: dict[int, set[str]] = {}
        for name in names:
            if (layer := self._layer(name)) is not None:
                by_layer.setdefault(layer, set()).add(name)
        asked = self.layers_to_transform
        wanted = [asked] if isinstance(asked, int) else list(asked or [])
        if missing := [layer for layer in wanted if layer not in by_layer]:
            there = f"{min(by_layer)} to {max(by_layer)}" if by_layer else "none: no name has such a number"
            raise RecipeError(
                f"adapter.layers_to_transform: there is no layer {missing[0]} with such linears",
                given=asked,
                allowed=there,
                try_="adapter.layers_pattern=null" if not by_layer and self.layers_pattern else None,
            )
        return set().union(*(by_layer[layer] for layer in wanted))

    def _layer(self, name: str) -> int | None:
        """The number behind the first name that counts layers: of experts, the layer's and not the expert's."""
        patterns = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern or []
        for pattern in [rf"(?:^|.*?\.){re.escape(word)}\.(\d+)\." for word in patterns] or [r".*?\.[^.]*\.(\d+)\."]:
            if match := re.match(pattern, name):
                return int(match[1])
        return None


def refuse_experts(model: CausalLM, names: set[str], what: str) -> None:
    """Raise RecipeError where something that has no arithmetic for experts is put on some."""
    stacked = [group for group in model.groups() if isinstance(group, ExpertGroup)]
    experts = {linear.name for group in stacked for linear in group.linears}
    if names & experts:
        raise RecipeError(
            f"adapter.target_modules: {what} does not train the experts of a mixture",
            given=f"{len(names & experts)} linears of experts among the targets",
            allowed="linears outside the experts; lora without a start of its own and full train experts",
            try_="adapter.target_modules='[q_proj, k_proj, v_proj, o_proj]'",
        )


def refuse_settings(config: dict[str, Any], names: Iterable[str], allowed: str) -> None:
    """Raise RecipeError for one of PEFT's settings `names` that an adapter_config.json makes use of."""
    for name in names:
        if config.get(name):
            raise RecipeError(
                f"this adapter uses '{name}', which is not supported", given=config[name], allowed=allowed
            )


def leaves_or_names(names: set[str], model: CausalLM) -> list[str]:
    """`names` as PEFT's lists have them: the ends alone where they mean the same, else whole names."""
    leaves = sorted({name.rsplit(".", 1)[-1] for name in names})
    meant = {name for name, _ in model.linears() if name.rsplit(".", 1)[-1] in leaves}
    numbers = any(leaf.isdigit() for leaf in leaves)  # of a list of modules: PEFT would find the layers' numbers, too
    return leaves if meant == names and not numbers else sorted(names)


def by_leaf_or_name(values: dict[str, Any], otherwise: Any) -> dict[str, Any]:
    """What each linear has, as PEFT's patterns say it: only what differs from `otherwise`, for all linears with one
    end at once where they agree."""
    found: dict[str, Any] = {}
    for leaf in sorted({name.rsplit(".", 1)[-1] for name in values}):
        mine = {name: value for name, value in values.items() if name.rsplit(".", 1)[-1] == leaf}
        if len(set(mine.values())) == 1:
            mine = {leaf: next(iter(mine.values()))}
        found |= {name: value for name, value in mine.items() if value != otherwise}
    return found


def from_peft_targets(config: dict[str, Any]) -> dict[str, Any]:
    """The options of TargetedAdapter that an adapter_config.json says."""
    found: dict[str, Any] = {"target_modules": config["target_modules"]}
    excluded = config.get("exclude_modules")
    if isinstance(excluded, list):
        excluded = [word for word in excluded if word != "lm_head"]  # which is none of our linears to begin with
    if excluded:
        found["exclude_modules"] = excluded
    if config.get("layers_to_transform") not in (None, []):  # PEFT writes [] where all layers are meant
        found["layers_to_transform"] = config["layers_to_transform"]
        found["layers_pattern"] = config.get("layers_pattern") or None
    return found
