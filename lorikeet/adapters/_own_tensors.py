"""What the kinds have in common that train tensors of the base itself: names, saving, merging.

PEFT has no layout for them. A checkpoint holds the trained tensors under the model's own names, and merging writes
them into the model's folder; there is nothing that could lie beside the base.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from lorikeet.adapters import _trained_experts as experts
from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._trained import release, released
from lorikeet.adapters._trained_experts import ExpertPart
from lorikeet.adapters._trained_linears import TrainedPart, master
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.linear import FrozenLinear


class OwnTensors(Adapter):
    """An adapter that is tensors of the base."""

    @property
    def beside_refusal(self) -> str | None:
        """See `Adapter.beside_refusal`."""
        return "it is tensors of the model itself, which have no place beside it"

    def chosen(self, model: CausalLM) -> set[str]:
        """The checkpoint's names of what trains. Raises RecipeError where that is nothing."""
        raise NotImplementedError

    def attach(self, model: CausalLM, *, seed: int) -> None:
        """See `Adapter.attach`."""
        release(model, self.chosen(model))

    def parameters(self, model: CausalLM) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`; under the checkpoint's names, those of a layer's experts in one."""
        return released(model) | experts.stacks(model)

    def tensors(self, model: CausalLM) -> dict[str, Tensor]:
        """See `Adapter.tensors`: each expert's own."""
        found: dict[str, Tensor] = dict(released(model))
        for name, stack in experts.stacks(model).items():
            found |= experts.one_by_one(name, stack)
        return found

    def merged(self, linear: FrozenLinear) -> Tensor:
        """See `Adapter.merged`."""
        if isinstance(linear.adapter, (TrainedPart, ExpertPart)):
            return linear.adapter.weight.detach()
        return linear.dense(master(linear.stored_dtype))

    def merged_others(self, model: CausalLM) -> dict[str, Tensor]:
        """See `Adapter.merged_others`."""
        of_linears = {f"{name}.{part}" for name, _ in model.linears() for part in ("weight", "bias")}
        return {name: one.detach() for name, one in released(model).items() if name not in of_linears}

    def peft_config(self, model: CausalLM) -> dict[str, Any]:
        """See `Adapter.peft_config`: of a kind that PEFT says it does not know."""
        options = self.model_dump(mode="json", exclude={"kind", "path"})
        return {"peft_type": self.peft_type, "task_type": "CAUSAL_LM", "inference_mode": True, **options}

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Self:
        """See `Adapter.from_peft`."""
        names = cls.model_fields.keys() - {"path"}
        return cls.model_validate({name: config[name] for name in names if name in config})
