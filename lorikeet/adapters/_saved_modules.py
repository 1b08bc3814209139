"""Whole modules that train beside an adapter and are saved with it: `modules_to_save`, with PEFT's meaning and layout.

They are tensors of the base, kept and computed as _trained.py has it. PEFT copies each module it is told, so a head
that is the embedding's own tensor is untied here as soon as one of the two is named.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator
from torch import Tensor, nn

from lorikeet.adapters._targets import PREFIX, TargetedAdapter
from lorikeet.adapters._trained import embedding_name, is_tied, release, released, trainable, untie
from lorikeet.adapters._trained_linears import TrainedPart, master
from lorikeet.base.errors import RecipeError, nearest
from lorikeet.base.option_fields import as_yaml
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.experts import ExpertGroup
from lorikeet.models.linear import FrozenLinear

OPTION = "adapter.modules_to_save"


class SavesModules(TargetedAdapter):
    """An adapter on chosen linears, and modules that train as they are."""

    modules_to_save: list[str] = Field(
        [],
        description="Modules that train whole and are saved with the adapter, by the ends of their names "
        "(embed_tokens, lm_head, norm, layers.0.mlp.down_proj).",
        examples=[["embed_tokens", "lm_head"]],
    )

    @field_validator("modules_to_save")
    @classmethod
    def _words(cls, value: list[str]) -> list[str]:
        if not all(value):
            raise ValueError("an empty name means every module (adapter.kind=full trains all)")
        return value

    @property
    def beside_refusal(self) -> str | None:
        """See `Adapter.beside_refusal`."""
        return "modules that trained whole are tensors of the model itself" if self.modules_to_save else None

    def targeted(self, model: CausalLM) -> set[str]:
        """See `TargetedAdapter.targeted`; what trains whole, or lies in what does, has no update beside it."""
        found = super().targeted(model)
        return {name for name in found if not any(_lies_in(word, name) for word in self.modules_to_save)}

    def function(self, model: CausalLM) -> dict[str, Any]:
        """See `Adapter.function`."""
        return super().function(model) | {"modules_to_save": sorted(self.modules_to_save)}

    def release_modules(self, model: CausalLM) -> None:
        """Let them train; the last thing that attaching does. Raises RecipeError for a word that names none."""
        if self.modules_to_save:
            release(model, self._chosen(model), quantised=True)

    def _chosen(self, model: CausalLM) -> set[str]:
        """The checkpoint's names of their tensors; the head is untied where that is needed."""
        missing, found = self._named(model)
        if is_tied(model) and (missing or embedding_name(model) in found):
            shared = embedding_name(model).removesuffix(".weight")
            untie(
                model,
                option=OPTION,
                given=as_yaml(self.modules_to_save),
                allowed=f"modules other than {shared} and the head; adapter.kind=head trains what they share",
            )
            missing, found = self._named(model)
        if missing:
            known = list(dict.fromkeys(name.split(".")[-2] for name in trainable(model) if "." in name))
            near = nearest(missing[0], known)
            raise RecipeError(
                f"{OPTION}: the model has no module named '{missing[0]}'",
                given=as_yaml(self.modules_to_save),
                allowed=" ".join(known),
                try_=f"{OPTION}='[{near}]'" if near else None,
            )
        self._refuse_experts(model, found)
        return found

    def _named(self, model: CausalLM) -> tuple[list[str], set[str]]:
        """(the words that name nothing, the tensors of the others)."""
        names, missing, found = trainable(model), [], set()
        for word in self.modules_to_save:
            mine = {name for name in names if any(module.endswith(word) for module in _modules_of(name))}
            found |= mine
            missing += [] if mine else [word]
        return missing, found

    def _refuse_experts(self, model: CausalLM, names: set[str]) -> None:
        for group in model.groups():
            linears = [one.name for one in group.linears if f"{one.name}.weight" in names]
            if linears and isinstance(group, ExpertGroup):
                raise RecipeError(
                    f"{OPTION}: the experts of a mixture are no modules that could be saved whole",
                    given=linears[0],
                    allowed="modules outside the experts; adapter.kind=full trains experts, adapter.kind=lora puts "
                    "updates beside them",
                )

    def module_parameters(self, model: CausalLM) -> dict[str, nn.Parameter]:
        """Their tensors, under PEFT's names."""
        if not self.modules_to_save:
            return {}
        _, names = self._named(model)
        return {f"{PREFIX}{name}": one for name, one in released(model).items() if name in names}

    def merged(self, linear: FrozenLinear) -> Tensor:
        """See `Adapter.merged`: the weight of a linear that trained whole, or as it was."""
        if isinstance(linear.adapter, TrainedPart):
            return linear.adapter.weight.detach()
        return linear.dense(master(linear.stored_dtype))

    def merged_others(self, model: CausalLM) -> dict[str, Tensor]:
        """See `Adapter.merged_others`."""
        of_linears = {f"{PREFIX}{name}.{part}" for name, _ in model.linears() for part in ("weight", "bias")}
        mine = {name: one for name, one in self.module_parameters(model).items() if name not in of_linears}
        return super().merged_others(model) | {name.removeprefix(PREFIX): one.detach() for name, one in mine.items()}

    def merged_settings(self, model: CausalLM, settings: dict[str, Any]) -> dict[str, Any]:
        """See `Adapter.merged_settings`."""
        found = super().merged_settings(model, settings)
        return found | ({"tie_word_embeddings": False} if self.modules_to_save and not is_tied(model) else {})


def modules_said(config: dict[str, Any]) -> dict[str, Any]:
    """The option that an adapter_config.json of PEFT's says."""
    return {"modules_to_save": list(config.get("modules_to_save") or [])}


def _modules_of(tensor: str) -> list[str]:
    """The names of the modules that a tensor lies in, as PEFT sees them: `model.layers.0.mlp`, ..."""
    parts = tensor.split(".")[:-1]
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _lies_in(word: str, name: str) -> bool:
    """Whether a module gets no update for this word; PEFT says so."""
    return name.endswith(word) or re.match(rf"(^|.*\.){re.escape(word)}($|\..*)", name) is not None
