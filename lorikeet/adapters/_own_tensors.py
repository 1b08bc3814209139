"""What the kinds have in common that train tensors of the base itself: names, saving, merging.

PEFT has no layout for them. A checkpoint holds the trained tensors under the model's own names, and merging writes
them into the model's folder; there is nothing that could lie beside the base.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import Self

from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._trained import TrainedPart, master, release, released
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.linear import FrozenLinear


class OwnTensors(Adapter):
    """An adapter that is tensors of the base."""

    beside_refusal: ClassVar[str | None] = "it is tensors of the model itself, which have no place beside it"

    def chosen(self, model: CausalLM) -> set[str]:
        """The checkpoint's names of what trains. Raises RecipeError where that is nothing."""
        raise NotImplementedError

    def attach(self, model: CausalLM, *, seed: int) -> None:
        """See `Adapter.attach`."""
        release(model, self.chosen(model))

    def parameters(self, model: CausalLM) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`; under the checkpoint's names."""
        return released(model)

    def merged(self, linear: FrozenLinear) -> Tensor:
        """See `Adapter.merged`."""
        if isinstance(linear.adapter, TrainedPart):
            return linear.adapter.weight.detach()
        return linear.dense(master(linear.stored_dtype))

    def merged_others(self, model: CausalLM) -> dict[str, Tensor]:
        """See `Adapter.merged_others`."""
        of_linears = {f"{name}.{part}" for name, _ in model.linears() for part in ("weight", "bias")}
        return {name: one.detach() for name, one in released(model).items() if name not in of_linears}

    def peft_config(self, model: CausalLM) -> dict[str, Any]:
        """See `Adapter.peft_config`: of a kind that PEFT says it does not know."""
        options = self.model_dump(mode="json", exclude={"kind"})
        return {"peft_type": self.peft_type, "task_type": "CAUSAL_LM", "inference_mode": True, **options}

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Self:
        """See `Adapter.from_peft`."""
        return cls.model_validate({name: config[name] for name in cls.model_fields if name in config})
